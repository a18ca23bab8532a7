-- Transactions that can't be published for a reason of their own, and those that wait behind them.
create table outbox.parked (
    id bigint generated always as identity primary key,
    relay text not null,
    tx_id text not null,
    xid xid8 not null,
    state text not null default 'pending' check (state in ('pending', 'parked', 'held', 'published', 'discarded')),
    place bigint,
    requested text check (requested in ('retry', 'discard')),
    fault text,
    attempts integer not null default 1,
    events bigint not null,
    bytes bigint not null default 0,
    keys bigint[] not null default '{}',
    first_at timestamptz not null default now(),
    last_at timestamptz not null default now(),
    settled_at timestamptz,
    unique (relay, tx_id)
);
comment on table outbox.parked is 'Transactions that could not be published, and those that wait behind them. Kept as history. Only the relay and `outbox-relay parked` write here; people must not delete rows that are parked or held.';
comment on column outbox.parked.id is 'For `outbox-relay parked`.';
comment on column outbox.parked.relay is 'Name of the relay.';
comment on column outbox.parked.tx_id is 'Header tx-id of its events.';
comment on column outbox.parked.xid is 'The writer''s transaction.';
comment on column outbox.parked.state is 'pending: the position has not passed it; parked: it failed; held: it shares a key with one before it that waits; published, discarded: settled.';
comment on column outbox.parked.place is 'Order in which they were passed.';
comment on column outbox.parked.requested is 'What the relay is asked to do with it.';
comment on column outbox.parked.fault is 'Why it could not be published; null: it is held.';
comment on column outbox.parked.attempts is 'How often it was tried alone.';
comment on column outbox.parked.events is 'Number of its events.';
comment on column outbox.parked.bytes is 'Their bytes.';
comment on column outbox.parked.keys is 'Hashes of its topics and record keys.';
comment on column outbox.parked.first_at is 'When it failed, or was held, first.';
comment on column outbox.parked.last_at is 'When it failed last.';
comment on column outbox.parked.settled_at is 'When it was published or discarded.';
create index parked_unsettled on outbox.parked (relay, place) where state in ('parked', 'held');

create table outbox.parked_events (
    parked_id bigint not null references outbox.parked (id) on delete cascade,
    index bigint not null,
    seq bigint not null,
    id uuid not null,
    topic text not null,
    key bytea,
    event_type text,
    payload bytea,
    -- Not jsonb: a table of others may have json, which may hold what jsonb does not.
    headers json not null,
    occurred_at_ms bigint not null,
    primary key (parked_id, index)
);
comment on table outbox.parked_events is 'Events of the transactions in outbox.parked, as they are to be published.';
comment on column outbox.parked_events.parked_id is 'The transaction.';
comment on column outbox.parked_events.index is 'Header tx-index.';
comment on column outbox.parked_events.seq is 'Order of insertion in the outbox table.';
comment on column outbox.parked_events.id is 'Event id.';
comment on column outbox.parked_events.topic is 'Topic, routed.';
comment on column outbox.parked_events.key is 'Record key.';
comment on column outbox.parked_events.event_type is 'Header type.';
comment on column outbox.parked_events.payload is 'Record value.';
comment on column outbox.parked_events.headers is 'The row''s own headers: pairs of name and value.';
comment on column outbox.parked_events.occurred_at_ms is 'Record timestamp, milliseconds since 1970 UTC.';

create table outbox.parked_audit (
    parked_id bigint not null references outbox.parked (id) on delete cascade,
    at timestamptz not null default clock_timestamp(),
    who text not null default session_user,
    action text not null,
    reason text
);
comment on table outbox.parked_audit is 'What was done to transactions in outbox.parked, and by whom.';
comment on column outbox.parked_audit.parked_id is 'The transaction.';
comment on column outbox.parked_audit.at is 'When.';
comment on column outbox.parked_audit.who is 'The database role.';
comment on column outbox.parked_audit.action is 'parked, held, retry, discard, failed, published, discarded.';
comment on column outbox.parked_audit.reason is 'Why.';
create index parked_audit_parked_id on outbox.parked_audit (parked_id, at);
