-- The session lives, so its lock does; asked by name all the same, in case a pooler swapped the session.
select exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid() and granted
    and ((classid::bigint << 32) | objid::bigint) = hashtextextended('outbox-relay ' || $1::text, 0) and objsubid = 1)
