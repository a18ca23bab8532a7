-- Pending rows say nothing: the position has not passed them. What is settled comes first.
select id, tx_id, state, requested, events, bytes, attempts, fault, first_at::text, last_at::text, settled_at::text
from outbox.parked
where relay = $1 and state <> 'pending' and ($2 or state in ('parked', 'held')) order by settled_at nulls last, place
