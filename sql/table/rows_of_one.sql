-- The next part of one large transaction. Its rows are committed and stay as they are, so no snapshot is held.
select {xid}::text, {columns} from {table} where {xid} = $1::text::xid8 and {seq} > $2 order by {seq} limit $3
