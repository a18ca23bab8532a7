select id, tx_id, state = 'parked', requested, events, bytes, keys
from outbox.parked where relay = $1 and state in ('parked', 'held') order by place
