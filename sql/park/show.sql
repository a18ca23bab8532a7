select e.index, e.id, e.topic, encode(e.key, 'escape'), e.event_type, octet_length(e.payload), to_timestamp(e.occurred_at_ms / 1000.0)::text
from outbox.parked_events e join outbox.parked p on p.id = e.parked_id
where p.relay = $1 and p.id = $2 order by e.index limit $3
