select exists (select from pg_replication_slots where slot_name = $1),
       exists (select from outbox.slots where slot = $1),
       exists (select from outbox.slots where slot = $1 and consistent_lsn is not null)
