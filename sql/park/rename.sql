update outbox.parked set relay = $2 where relay = $1
