update outbox.parked set bytes = $2, keys = $3 where id = $1
