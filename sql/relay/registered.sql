select name, served_table from outbox.relay where name = $1 or served_table = $2
