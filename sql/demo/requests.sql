insert into demo.backup_requests (id) select unnest($1::text[])
