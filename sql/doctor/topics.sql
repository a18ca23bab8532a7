-- Where the newest rows go, and whether one of them waits, as far as outbox.relay says what is published.
select coalesce(jsonb_agg(distinct_topics), '[]')
from (
    select topic, aggregate_type, bool_or(not coalesce(pg_visible_in_snapshot(xid, seen), false)) as waits
    from (select {topic} as topic, {aggregate_type} as aggregate_type, {xid} as xid from {table} {newest} limit 10000) rows
    left join (select (position ->> 'seen')::pg_snapshot as seen from outbox.relay where name = $1) relay on true
    group by topic, aggregate_type
    limit 200
) distinct_topics
