-- Transactions of this relay that were set aside: whether the position passed over them and they were not published since. A
-- pending row counts where the last record names it; another one is of a relay that died before it passed it.
select xid::text, state <> 'published'
from outbox.parked
where relay = $1 and (state <> 'pending' or tx_id = any ($2::text[]))
