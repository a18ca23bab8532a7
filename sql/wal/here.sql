-- Slot, publication and the limit of kept WAL. Newer versions of pg_replication_slots have more columns, hence the JSON.
-- The last column is asked after a commit of ours, so it lies above all ids that were streamed before: a transaction that
-- waits for a synchronous standby is streamed, but a snapshot may not have reached it.
select s.plugin, coalesce(s.database = current_database(), false), to_jsonb(s) ->> 'inactive_since', coalesce(s.wal_status, 'lost'),
       to_jsonb(s) ->> 'invalidation_reason', s.confirmed_flush_lsn::text,
       coalesce(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), s.restart_lsn), 0)::bigint, s.safe_wal_size,
       exists (select from pg_publication p
               join pg_publication_tables t on t.pubname = p.pubname
               where p.pubname = $1 and p.pubinsert and t.schemaname || '.' || t.tablename = $2),
       current_setting('max_slot_wal_keep_size') = '-1',
       coalesce(has_function_privilege(to_regprocedure('pg_catalog.pg_log_standby_snapshot()')::oid, 'execute'), false),
       pg_snapshot_xmax(pg_current_snapshot())::text
from (select) one
left join pg_replication_slots s on s.slot_name = $1
