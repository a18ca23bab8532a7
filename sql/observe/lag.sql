-- Committed rows beyond the position, and how long ago the oldest of them occurred. Newest first and up to a limit, so that a
-- backlog costs no more than that; the last column says how many were looked at. What the position has passed of an open window,
-- or of the WAL, is not counted.
with published as materialized (select $3::text::int8multirange as beyond, $4::text::pg_snapshot as until),
newest as (
    (select {xid} as xid, {seq} as seq, {occurred_at} as occurred_at from {table} e
     where e.{xid} >= $1::text::xid8
     order by e.{xid} desc
     limit $6)
    union all
    (select {xid}, {seq}, {occurred_at} from {table} where {xid} = any ($2::text[]::xid8[]) limit $6)
)
select count(*) filter (where not passed),
       (extract(epoch from clock_timestamp() - min(occurred_at) filter (where not passed)) * 1000)::bigint,
       count(*)
from (
    select occurred_at,
           xid::text::bigint <@ (select beyond from published)
           or coalesce(pg_visible_in_snapshot(xid, (select until from published)) and seq <= $5, false) as passed
    from newest
) looked_at
