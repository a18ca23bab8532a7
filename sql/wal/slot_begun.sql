insert into outbox.slots (slot) values ($1) on conflict (slot) do update set consistent_lsn = null, snapshot = null, exported = false
