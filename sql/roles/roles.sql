-- Roles with the least privileges, and the owner of schema outbox. May be run again: it grants what this capture needs, and
-- revokes what only the other one does.
begin;
do $$
declare
    it record;
    replicates constant boolean := '{capture}' = 'wal';
begin
    if to_regrole('{prefix}_owner') is null then
        create role {prefix}_owner nologin;
    end if;
    if to_regrole('{prefix}_writer') is null then
        create role {prefix}_writer nologin;
    end if;
    if to_regrole('{prefix}_relay') is null then
        create role {prefix}_relay login;
    end if;
    -- Not inherited from another role, so the relay logs in as this one.
    if (select rolreplication from pg_roles where rolname = '{prefix}_relay') <> replicates then
        execute format('alter role {prefix}_relay %s', case when replicates then 'replication' else 'noreplication' end);
    end if;

    for it in select oid::regclass as name from pg_class where relnamespace = 'outbox'::regnamespace and relkind in ('r', 'p', 'v') loop
        execute format('alter table %s owner to {prefix}_owner', it.name);
    end loop;
    for it in select oid::regprocedure as name, proname in ('publish', 'emit') as is_for_writers
              from pg_proc where pronamespace = 'outbox'::regnamespace loop
        execute format('alter function %s owner to {prefix}_owner', it.name);
        execute format('revoke execute on function %s from public', it.name);
        if it.is_for_writers then
            execute format('grant execute on function %s to {prefix}_writer', it.name);
        end if;
    end loop;
    alter schema outbox owner to {prefix}_owner;

    for it in select * from (
{needs}
    ) needs (kind, object, privilege, capture, purpose) loop
        if it.kind = 'function' and to_regprocedure(it.object) is null then
            -- The server is too old for it.
            continue;
        elsif it.capture in ('both', 'retention', '{capture}') then
            execute format('grant %s on %s %s to {prefix}_relay', it.privilege, it.kind, it.object);
        else
            execute format('revoke %s on %s %s from {prefix}_relay', it.privilege, it.kind, it.object);
        end if;
    end loop;
    -- The leaves of a ring, which retention truncates.
    for it in select inhrelid::regclass as name from pg_inherits where inhparent = to_regclass('outbox.events') loop
        execute format('grant select, delete, truncate on %s to {prefix}_relay', it.name);
    end loop;
end $$;

-- Writers insert, and neither choose xid and seq nor read, change or delete what is there.
grant usage on schema outbox to {prefix}_writer;
grant insert (id, topic, aggregate_type, aggregate_id, event_type, payload, headers, occurred_at) on outbox.events to {prefix}_writer;
-- outbox.publish answers it.
grant select (id) on outbox.events to {prefix}_writer;
-- outbox.emit asks whether the relay captures the WAL.
grant select (capture) on outbox.relay to {prefix}_writer;
commit;
