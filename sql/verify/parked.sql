-- Transactions that the position passed over and that were not published since.
select xid::text from outbox.parked where state <> 'published'
