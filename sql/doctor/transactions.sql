-- Transactions that have been open for longer than $1 seconds, and those whose age the role may not see.
select jsonb_build_object(
    'hidden', count(*) filter (where backend_type is null),
    'old', coalesce(jsonb_agg(jsonb_build_object(
        'pid', pid, 'role', usename, 'application', application_name, 'database', datname, 'state', state,
        'age_s', extract(epoch from clock_timestamp() - xact_start)::bigint
    ) order by xact_start) filter (where backend_type is not null), '[]'))
from pg_stat_activity
where (backend_xid is not null or backend_xmin is not null) and pid <> pg_backend_pid()
      and (backend_type is null and usesysid is not null
           or backend_type = 'client backend' and xact_start <= clock_timestamp() - $1::bigint * interval '1 second')
