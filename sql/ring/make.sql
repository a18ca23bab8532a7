-- outbox.events as a ring of leaves: {leaf_rows} rows go into one, the next into the next, and after the last comes the first
-- again. Every row has its leaf for ever, so none is attached, detached, made or dropped while writers write. The key is an
-- expression, so there can be no unique index; seq is unique by its sequence.
create table outbox.events_ring (like outbox.events including all excluding indexes)
    partition by list ((seq / {leaf_rows} % {leaves}));
do $$ begin
    for leaf in 0..{leaves} - 1 loop
        execute format('create table outbox.events_%s partition of outbox.events_ring for values in (%s)', lpad(leaf::text, 2, '0'), leaf);
    end loop;
end $$;
drop table outbox.events;
alter table outbox.events_ring rename to events;
alter sequence outbox.events_ring_seq_seq rename to events_seq_seq;
create index events_xid_seq on outbox.events (xid, seq);
comment on table outbox.events is 'Domain events to publish, a ring of leaves that are truncated once all in them is published and old. Writers insert and nothing else: a row that its writer deletes or updates may be lost or torn.'
