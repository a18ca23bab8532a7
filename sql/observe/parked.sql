-- Transactions that were set aside, those that wait behind them, their events, and since when.
select count(*) filter (where state = 'parked'), count(*) filter (where state = 'held'), coalesce(sum(events), 0)::bigint,
       (extract(epoch from clock_timestamp() - min(first_at)) * 1000)::bigint
from outbox.parked
where relay = $1 and state in ('parked', 'held')
