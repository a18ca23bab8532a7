select id, requested from outbox.parked where relay = $1 and state = 'parked' and requested is not null
