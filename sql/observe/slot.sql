-- Newer versions of pg_replication_slots have more columns, hence the JSON.
select active, coalesce(wal_status, 'lost'), safe_wal_size,
       coalesce(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn), 0)::bigint,
       (extract(epoch from clock_timestamp() - (to_jsonb(s) ->> 'inactive_since')::timestamptz) * 1000)::bigint
from pg_replication_slots s
where slot_name = $1
