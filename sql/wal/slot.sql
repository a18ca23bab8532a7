insert into outbox.slots (slot) values ('{slot}') on conflict (slot) do update set consistent_lsn = null, snapshot = null, exported = false;
do $$
begin
    if current_setting('server_version_num')::int >= 170000 then
        perform pg_create_logical_replication_slot('{slot}', 'pgoutput', temporary => false, failover => true);
    else
        perform pg_create_logical_replication_slot('{slot}', 'pgoutput');
    end if;
end $$;
update outbox.slots
set consistent_lsn = (select confirmed_flush_lsn from pg_replication_slots where slot_name = '{slot}'),
    snapshot = pg_current_snapshot()::text, made_at = now()
where slot = '{slot}';
