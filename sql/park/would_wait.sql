-- What a record says, applied by reading alone; see passed.sql and settled.sql.
select id, tx_id, state = 'parked', requested, events, bytes, keys
from outbox.parked
where relay = $1 and (state in ('parked', 'held') or state = 'pending' and tx_id = any ($2::text[]))
  and tx_id <> all ($3::text[])
