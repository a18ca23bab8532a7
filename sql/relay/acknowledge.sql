insert into outbox.relay as r (name, served_table, capture, system_id, timeline, position, lease_holder)
values ($1, $2, $3, $4, $5, $6::text::jsonb, $7)
on conflict (name) do update
set served_table = excluded.served_table, capture = excluded.capture, system_id = excluded.system_id,
    timeline = excluded.timeline, position = excluded.position, lease_holder = excluded.lease_holder,
    acknowledged_at = now()
