select {xid}::text, {columns} from {table} where {xid} = any ($1::text[]::xid8[])
