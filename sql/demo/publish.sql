-- The one-line form, for events with data.
with event as (
    select outbox.publish($1, $2, $3::jsonb, event_type => $4, headers => jsonb_build_object('version', $5::bigint)) as id
)
insert into demo.ledger (id, topic, key, version) select id, $1, $2, $5 from event
