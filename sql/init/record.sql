insert into outbox.migrations (version, name) values ($1, $2)
