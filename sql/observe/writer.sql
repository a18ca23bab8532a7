-- The oldest open transaction that has written. Who may not see the sessions of others is told so, instead of "none".
select pg_has_role('pg_read_all_stats', 'usage'), (extract(epoch from clock_timestamp() - open.since) * 1000)::bigint, open.who
from (select) one
left join lateral (
    select xact_start as since, 'pid ' || pid || ' (' || coalesce(nullif(application_name, ''), usename::text) || ')' as who
    from pg_stat_activity
    where backend_xid is not null and datname = current_database() and pid <> pg_backend_pid()
    union all
    select prepared, 'prepared transaction ' || quote_literal(gid) from pg_prepared_xacts where database = current_database()
    order by 1
    limit 1
) open on true
