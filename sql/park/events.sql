select seq, id, topic, key, event_type, payload, headers, occurred_at_ms, index
from outbox.parked_events where parked_id = $1 and index >= $2 order by index limit $3
