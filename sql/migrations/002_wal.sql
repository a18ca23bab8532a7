-- Capture from the write-ahead log.
create table outbox.slots (
    slot text primary key,
    consistent_lsn pg_lsn,
    snapshot text,
    exported boolean not null default false,
    made_at timestamptz not null default now()
);
comment on table outbox.slots is 'Replication slots that outbox-relay made. Writers must not delete rows.';
comment on column outbox.slots.slot is 'Name of the slot, and of its publication.';
comment on column outbox.slots.consistent_lsn is 'All that commits beyond it is streamed; null: it is being made.';
comment on column outbox.slots.snapshot is 'What had committed by then, and is not streamed.';
comment on column outbox.slots.exported is 'The snapshot is exactly that; false: it may have seen a little more.';
comment on column outbox.slots.made_at is 'When it was made.';

comment on column outbox.relay.capture is 'How it reads: table or wal.';

-- Events without a row: they go to the write-ahead log alone. Answers the event id.
create function outbox.emit(
    topic text, key text, payload bytea,
    event_type text default null, headers jsonb default null, aggregate_type text default null
) returns uuid language plpgsql volatile as $$
declare
    about bytea;
    event_id constant uuid := gen_random_uuid();
begin
    -- Capture table would never see it.
    if not exists (select from outbox.relay where capture = 'wal') then
        raise exception 'outbox.emit needs a relay with capture wal' using
            errcode = 'object_not_in_prerequisite_state',
            hint = 'Use outbox.publish, or move the relay with outbox-relay move --to wal.';
    end if;
    if emit.topic !~ '^[a-zA-Z0-9._-]{1,249}$' or emit.topic in ('.', '..')
       or emit.topic is null and coalesce(emit.aggregate_type, '') !~ '^[a-zA-Z0-9._-]{1,200}$' then
        raise exception 'topic % with aggregate type % makes no legal Kafka topic', emit.topic, emit.aggregate_type
            using errcode = 'check_violation';
    end if;
    if jsonb_typeof(emit.headers) <> 'object' then
        raise exception 'headers must be a JSON object' using errcode = 'check_violation';
    end if;
    about := convert_to(jsonb_build_object(
        'id', event_id, 'topic', emit.topic, 'aggregate_type', emit.aggregate_type, 'key', emit.key,
        'event_type', emit.event_type, 'headers', emit.headers, 'tombstone', emit.payload is null,
        'occurred_at_ms', floor(extract(epoch from clock_timestamp()) * 1000)::bigint)::text, 'UTF8');
    perform pg_logical_emit_message(true, 'outbox', int4send(octet_length(about)) || about || coalesce(emit.payload, ''));
    return event_id;
end $$;
create function outbox.emit(
    topic text, key text, payload text,
    event_type text default null, headers jsonb default null, aggregate_type text default null
) returns uuid language sql volatile as $$
    select outbox.emit($1, $2, convert_to($3, 'UTF8'), $4, $5, $6)
$$;
create function outbox.emit(
    topic text, key text, payload jsonb,
    event_type text default null, headers jsonb default null, aggregate_type text default null
) returns uuid language sql volatile as $$
    select outbox.emit($1, $2, convert_to($3::text, 'UTF8'), $4, $5, $6)
$$;
comment on function outbox.emit(text, text, bytea, text, jsonb, text) is 'Emits one event without a row, payload byte for byte; needs capture wal.';
comment on function outbox.emit(text, text, text, text, jsonb, text) is 'Emits one event without a row, payload as UTF-8; needs capture wal.';
comment on function outbox.emit(text, text, jsonb, text, jsonb, text) is 'Emits one event without a row, payload as PostgreSQL prints the JSON; needs capture wal.';
