-- Transactions that the position may have passed, and that are neither published nor discarded. A pending row of long ago is
-- of a relay that died, or was fenced, before its position passed it.
select xid::text from outbox.parked where relay = $1 and state in ('parked', 'held')
union all
select xid::text from outbox.parked where relay = $1 and state = 'pending' and last_at > now() - interval '1 day'
