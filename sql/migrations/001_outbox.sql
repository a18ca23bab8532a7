-- The outbox: writers insert here, in the transaction that changes their aggregate. outbox-relay publishes it.
create schema outbox;
comment on schema outbox is 'Transactional outbox, published to Kafka by outbox-relay.';

create table outbox.migrations (
    version integer primary key,
    name text not null,
    applied_at timestamptz not null default now()
);
comment on table outbox.migrations is 'Migrations of this schema that were applied.';
comment on column outbox.migrations.version is 'Number of the migration.';
comment on column outbox.migrations.name is 'File name of the migration.';
comment on column outbox.migrations.applied_at is 'When it was applied.';

create table outbox.events (
    seq bigint generated always as identity,
    xid xid8 not null default pg_current_xact_id(),
    id uuid not null default gen_random_uuid(),
    topic text,
    aggregate_type text,
    aggregate_id text,
    event_type text,
    payload bytea,
    headers jsonb,
    occurred_at timestamptz not null default clock_timestamp(),
    -- The one index: the relay reads by transaction, and by seq inside it. A random uuid as key would cost a page per row.
    constraint events_xid_seq primary key (xid, seq),
    -- Kafka's own rule for names (org.apache.kafka.common.internals.Topic). Here the mistake fails in the writer's transaction.
    constraint events_topic_legal check (topic ~ '^[a-zA-Z0-9._-]{1,249}$' and topic not in ('.', '..')),
    -- coalesce, because a check that is null passes.
    constraint events_topic_or_aggregate_type check (topic is not null or coalesce(aggregate_type, '') ~ '^[a-zA-Z0-9._-]{1,200}$'),
    constraint events_headers_object check (jsonb_typeof(headers) = 'object')
);
comment on table outbox.events is 'Domain events to publish. Writers insert and nothing else: a row that its writer deletes or updates may be lost or torn.';
comment on column outbox.events.seq is 'Order of insertion. Never set by writers.';
comment on column outbox.events.xid is 'The writer''s transaction. Never set by writers.';
comment on column outbox.events.id is 'Event id, header id.';
comment on column outbox.events.topic is 'Kafka topic; null: outbox.event.{aggregate_type}.';
comment on column outbox.events.aggregate_type is 'Kind of aggregate, for routing when topic is null.';
comment on column outbox.events.aggregate_id is 'Record key: events of one key keep their order.';
comment on column outbox.events.event_type is 'Kind of event, header type.';
comment on column outbox.events.payload is 'Record value, byte for byte; null is a tombstone.';
comment on column outbox.events.headers is 'Extra headers, a JSON object: strings as they are, other values as JSON, null as null.';
comment on column outbox.events.occurred_at is 'Record timestamp.';

create table outbox.relay (
    name text primary key,
    served_table text not null unique,
    capture text not null,
    system_id text not null,
    timeline integer not null,
    position jsonb not null,
    lease_holder text not null,
    started_at timestamptz not null default now(),
    acknowledged_at timestamptz not null default now()
);
comment on table outbox.relay is 'The relays that serve tables of this database, one name for each table. A copy and a guard: the truth is the position in Kafka. Writers must not delete rows.';
comment on column outbox.relay.name is 'Name of the relay (--name).';
comment on column outbox.relay.served_table is 'schema.table that it serves; a second name for it is refused.';
comment on column outbox.relay.capture is 'How it reads: table.';
comment on column outbox.relay.system_id is 'System identifier of the cluster at the last acknowledgement.';
comment on column outbox.relay.timeline is 'Timeline of the cluster at the last acknowledgement.';
comment on column outbox.relay.position is 'Last acknowledged position: all up to it is published.';
comment on column outbox.relay.lease_holder is 'Instance that acknowledged last: host, process id and a random part.';
comment on column outbox.relay.started_at is 'When the name was registered.';
comment on column outbox.relay.acknowledged_at is 'When the position was acknowledged.';

create table outbox.marks (
    name text not null references outbox.relay (name) on update cascade on delete cascade,
    at timestamptz not null default now(),
    position jsonb not null,
    primary key (name, at)
);
comment on table outbox.marks is 'What was published when: a position a minute. Retention needs it. Writers must not delete rows.';
comment on column outbox.marks.name is 'Name of the relay.';
comment on column outbox.marks.at is 'When the position was acknowledged.';
comment on column outbox.marks.position is 'All up to it was published at that time.';

-- The one-line form for writers, one for each kind of payload. Answers the event id.
create function outbox.publish(
    topic text, key text, payload bytea,
    event_type text default null, headers jsonb default null, aggregate_type text default null
) returns uuid language sql volatile as $$
    insert into outbox.events (topic, aggregate_id, payload, event_type, headers, aggregate_type)
    values ($1, $2, $3, $4, $5, $6) returning id
$$;
create function outbox.publish(
    topic text, key text, payload text,
    event_type text default null, headers jsonb default null, aggregate_type text default null
) returns uuid language sql volatile as $$
    select outbox.publish($1, $2, convert_to($3, 'UTF8'), $4, $5, $6)
$$;
create function outbox.publish(
    topic text, key text, payload jsonb,
    event_type text default null, headers jsonb default null, aggregate_type text default null
) returns uuid language sql volatile as $$
    select outbox.publish($1, $2, convert_to($3::text, 'UTF8'), $4, $5, $6)
$$;
comment on function outbox.publish(text, text, bytea, text, jsonb, text) is 'Writes one event to the outbox, payload byte for byte.';
comment on function outbox.publish(text, text, text, text, jsonb, text) is 'Writes one event to the outbox, payload as UTF-8.';
comment on function outbox.publish(text, text, jsonb, text, jsonb, text) is 'Writes one event to the outbox, payload as PostgreSQL prints the JSON.';
