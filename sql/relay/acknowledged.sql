select position::text from outbox.relay where name = $1
