-- All below this transaction id have ended, prepared ones included.
select pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8
