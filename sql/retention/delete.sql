-- The next rows that may go, in the order of the index, behind those that went before. Answers the last one, and how many.
with gone as (
    delete from only {table} where ctid = any (array(
        select o.ctid from only {table} o
        where (o.{xid}, o.{seq}) > ('{after_xid}', {after_seq}) and o.{xid} < '{xmax}' and o.{xid} <> all ('{in_progress}'::xid8[])
        order by o.{xid}, o.{seq} limit {rows}))
    returning {xid} as xid, {seq} as seq
)
select g.xid::text, g.seq, count(*) over () from gone g order by g.xid desc, g.seq desc limit 1
