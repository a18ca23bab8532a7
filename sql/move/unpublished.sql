select count(*), count(distinct {xid}) from {table} where {xid} >= $1::text::xid8 or {xid} = any ($2::text[]::xid8[])
