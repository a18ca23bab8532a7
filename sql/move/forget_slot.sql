delete from outbox.slots where slot = $1
