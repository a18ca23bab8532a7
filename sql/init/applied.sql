-- Only asked when outbox.migrations exists.
select coalesce(max(version), 0) from outbox.migrations
