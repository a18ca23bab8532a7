-- What became of transactions; null where PostgreSQL has forgotten. An id that was never given out would be an error.
select t.xid::text,
       case when t.xid < pg_snapshot_xmax(pg_current_snapshot()) then pg_xact_status(t.xid) else 'in progress' end
from unnest($1::text[]::xid8[]) t (xid)
