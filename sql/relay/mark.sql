-- One mark a minute is enough for retention.
insert into outbox.marks (name, position)
select $1, $2::text::jsonb
where not exists (select from outbox.marks where name = $1 and at > now() - interval '1 minute')
