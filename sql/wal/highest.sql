(select e.{xid}::text from {table} e order by e.{xid} desc limit 1)
