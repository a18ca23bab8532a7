-- One statement, one snapshot: what is visible, how far WAL was written after that was known, and the highest
-- transaction of which a row is visible. Unseen by the position are $1 and above, and those that were in progress.
select pg_current_snapshot()::text,
       pg_current_wal_insert_lsn()::text,
       -- Sorted by the column, hence e.: a bare name would be the output column, and text sorts 1000 before 999.
       (select e.{xid}::text from {table} e where e.{xid} >= $1::text::xid8 order by e.{xid} desc limit 1),
       exists (select from {table} e where e.{xid} = any ($2::text[]::xid8[]))
