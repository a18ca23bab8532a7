insert into outbox.slots (slot) values ('{slot}') on conflict (slot) do update set consistent_lsn = null, snapshot = null, exported = false;
-- A statement of its own: inside a block it can fail (PostgreSQL 14, measured). On 17 and newer, for a slot that standbys keep
-- too, add: failover => true
select pg_create_logical_replication_slot('{slot}', 'pgoutput');
update outbox.slots
set consistent_lsn = (select confirmed_flush_lsn from pg_replication_slots where slot_name = '{slot}'),
    snapshot = pg_current_snapshot()::text, made_at = now()
where slot = '{slot}';
