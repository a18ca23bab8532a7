-- Transactions with an id that are open: by process, or by name where they are prepared.
select 'pid ' || pid || ' (' || coalesce(nullif(application_name, ''), usename::text) || ', open for ' ||
       extract(epoch from now() - xact_start)::bigint || ' s)'
from pg_stat_activity where backend_xid is not null and datname = current_database() and pid <> pg_backend_pid()
union all
select 'prepared transaction ' || quote_literal(gid) from pg_prepared_xacts
