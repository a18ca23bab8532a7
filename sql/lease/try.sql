-- Never pg_advisory_lock: waiting inside a statement would hold back VACUUM.
select pg_try_advisory_lock(hashtextextended('outbox-relay ' || $1::text, 0))
