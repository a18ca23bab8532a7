-- The transactions of which rows are retained, through the index on (xid, seq).
select e.{xid}::text, max(e.{seq}), count(*) from {table} e group by e.{xid} order by e.{xid}
