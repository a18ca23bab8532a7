delete from outbox.parked_events where parked_id = $1
