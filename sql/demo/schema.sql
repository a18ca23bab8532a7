-- The service of the demo: backup requests, each with a state and a version that grows with every event.
create schema demo;
create table demo.backup_requests (
    id text primary key,
    state text not null default 'new',
    version bigint not null default 0
);
-- Calls of use cases. Writing here first takes the transaction id before the aggregate's lock is waited for.
create table demo.calls (
    number bigint generated always as identity primary key,
    request text not null
);
-- What the check compares Kafka with. It is written in the transaction of the events, so it holds what was committed
-- and nothing else, even where the outcome of a COMMIT never reached its writer.
create table demo.ledger (
    id uuid primary key,
    number bigint generated always as identity,
    xid xid8 not null default pg_current_xact_id(),
    topic text not null,
    key text not null,
    version bigint not null
);
