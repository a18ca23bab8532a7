-- Prepared transactions that have waited for their end for longer than $1 seconds.
select coalesce(jsonb_agg(jsonb_build_object(
    'gid', quote_literal(gid), 'owner', owner, 'database', database,
    'age_s', extract(epoch from clock_timestamp() - prepared)::bigint) order by prepared), '[]')
from pg_prepared_xacts
where prepared <= clock_timestamp() - $1::bigint * interval '1 second'
