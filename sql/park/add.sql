-- A pending row says nothing yet: it may be left from a relay that died or was fenced.
insert into outbox.parked as p (relay, tx_id, xid, fault, events)
values ($1, $2, split_part($2, '-', 3)::xid8, $3, $4)
on conflict (relay, tx_id) do update
set fault = excluded.fault, events = excluded.events, bytes = 0, keys = '{}', last_at = now()
where p.state = 'pending'
returning id, xmax <> 0 as was_there
