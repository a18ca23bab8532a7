-- One statement, one snapshot: what is visible, the highest transaction of which a row is, and how far WAL was written
-- after that was known.
select pg_current_snapshot()::text, {highest}, pg_current_wal_insert_lsn()::text
