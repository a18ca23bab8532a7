-- Committed rows beyond the position, and how long ago the oldest of them occurred. Newest first and up to a limit, so that a
-- backlog costs no more than that. What the position has passed of an open window, or of the WAL, is left out.
with published as materialized (select $3::text::int8multirange as beyond, $4::text::pg_snapshot as until)
select count(*), (extract(epoch from clock_timestamp() - min(occurred_at)) * 1000)::bigint
from (
    (select {occurred_at} as occurred_at from {table}
     where {xid} >= $1::text::xid8
       and not ({xid}::text::bigint <@ (select beyond from published))
       and not coalesce(pg_visible_in_snapshot({xid}, (select until from published)) and {seq} <= $5, false)
     order by {xid} desc
     limit $6)
    union all
    (select {occurred_at} from {table}
     where {xid} = any ($2::text[]::xid8[])
       and not ({xid}::text::bigint <@ (select beyond from published))
       and not coalesce(pg_visible_in_snapshot({xid}, (select until from published)) and {seq} <= $5, false)
     limit $6)
) unpublished
