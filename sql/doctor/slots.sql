-- All replication slots. Newer versions have more columns, hence the JSON.
select coalesce(jsonb_agg(to_jsonb(s) || jsonb_build_object(
    'is_of_this_database', coalesce(s.database = current_database(), false),
    'retained_bytes', coalesce(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), s.restart_lsn), 0)::bigint) order by s.slot_name), '[]')
from pg_replication_slots s
