update outbox.slots set consistent_lsn = $2::text::pg_lsn, snapshot = $3, exported = true, made_at = now() where slot = $1
