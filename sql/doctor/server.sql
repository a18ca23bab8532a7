-- The server, and the role that asks.
select jsonb_build_object(
    'version', current_setting('server_version'),
    'version_num', current_setting('server_version_num')::int,
    'is_standby', pg_is_in_recovery(),
    'clock_ms', (extract(epoch from clock_timestamp()) * 1000)::bigint,
    'database', current_database(),
    'role', current_user,
    -- Amazon's services lend the attribute by membership.
    'role_replicates', r.rolreplication or r.rolsuper or exists (
        select from pg_roles m where m.rolname = 'rds_replication' and pg_has_role(m.oid, 'member')),
    'connections', (select coalesce(sum(numbackends), 0) from pg_stat_database),
    'role_limit', case when r.rolsuper then -1 else r.rolconnlimit end,
    'role_connections', (select count(*) from pg_stat_activity where usesysid = r.oid),
    'database_limit', case when r.rolsuper then -1 else d.datconnlimit end,
    'database_connections', (select numbackends from pg_stat_database where datid = d.oid),
    'senders', (select count(*) from pg_stat_replication),
    'settings', (select jsonb_object_agg(name, jsonb_build_object('value', setting, 'source', source)) from pg_settings where name in (
        'fsync', 'full_page_writes', 'synchronous_commit', 'max_connections', 'superuser_reserved_connections', 'reserved_connections',
        'wal_level', 'max_slot_wal_keep_size', 'max_replication_slots', 'max_wal_senders')),
    'asynchronous', (
        select coalesce(jsonb_agg(jsonb_build_object('database', quote_ident(of.datname), 'role', quote_ident(by.rolname))), '[]')
        from pg_db_role_setting s
        left join pg_database of on of.oid = s.setdatabase
        left join pg_roles by on by.oid = s.setrole
        where s.setdatabase in (0, d.oid) and s.setconfig @> array['synchronous_commit=off'])
)
from pg_roles r, pg_database d
where r.rolname = current_user and d.datname = current_database()
