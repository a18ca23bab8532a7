select id, tx_id, state, requested, events, bytes, attempts, fault, first_at::text, last_at::text, settled_at::text
from outbox.parked
where relay = $1 and state <> 'pending' and id = $2
