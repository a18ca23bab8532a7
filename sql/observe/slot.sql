-- Newer versions of pg_replication_slots have more columns, hence the JSON.
select active, coalesce(wal_status, 'lost'), safe_wal_size,
       coalesce(pg_wal_lsn_diff(
           case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end, restart_lsn), 0)::bigint,
       (extract(epoch from clock_timestamp() - (to_jsonb(s) ->> 'inactive_since')::timestamptz) * 1000)::bigint
from pg_replication_slots s
where slot_name = $1
