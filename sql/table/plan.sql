-- Transactions of a window in order. By max(seq), not by xid: a transaction may take its xid early and wait for a row
-- lock. A cursor, so that a backlog is sorted once; only ids and sizes pass through the sort.
declare plan no scroll cursor for
select xid::text, max(seq), count(*), coalesce(sum(bytes), 0)::bigint, bit_xor(uuid_hash_extended(id, 0))
from (
    select {xid} as xid, {seq} as seq, octet_length({payload}) as bytes, {id}::uuid as id from {table} where {xid} >= '{xmax}'
    union all
    select {xid}, {seq}, octet_length({payload}), {id}::uuid from {table} where {xid} = any ('{in_progress}'::xid8[])
) unseen
where pg_visible_in_snapshot(xid, '{until}')
group by xid
having max(seq) > {last_seq}
order by max(seq)
