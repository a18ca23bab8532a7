update outbox.relay set name = $2 where name = $1
