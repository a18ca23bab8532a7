-- Rows that carry transaction ids of another cluster (a restored dump, logical replication) would never be, or at once be, seen.
select {xid}::text from {table} where {xid} >= pg_snapshot_xmax(pg_current_snapshot()) limit 1
