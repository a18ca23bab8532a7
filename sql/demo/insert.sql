-- The plain insert, for events that carry the id only.
with event as (
    insert into outbox.events (topic, aggregate_type, aggregate_id, payload, event_type, headers)
    values ($1, 'backup_request', $2, convert_to($3::jsonb::text, 'UTF8'), $4, jsonb_build_object('version', $5::bigint))
    returning id
)
insert into demo.ledger (id, topic, key, version) select id, $1, $2, $5 from event
