select xid::text, id, topic, key, version from demo.ledger order by xid, number
