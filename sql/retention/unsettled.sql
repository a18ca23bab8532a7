-- Transactions that the position may have passed, and that are neither published nor discarded.
select xid::text from outbox.parked where relay = $1 and state not in ('published', 'discarded')
