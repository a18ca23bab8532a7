-- The database's clock, the end of its WAL, whether anybody holds the lease, and what the relay wrote of itself.
select (extract(epoch from clock_timestamp()) * 1000)::bigint,
       (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end)::text,
       exists (select from pg_locks l join pg_database d on d.oid = l.database
               where d.datname = current_database() and l.locktype = 'advisory' and l.granted and l.objsubid = 1
                 and ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended('outbox-relay ' || $1::text, 0)),
       r.served_table, r.lease_holder, r.position::text, (extract(epoch from r.acknowledged_at) * 1000)::bigint
from (select) one left join outbox.relay r on r.name = $1
