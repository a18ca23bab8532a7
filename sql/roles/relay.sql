-- What the relay's role needs, a line each: on what, which privilege, for which capture or for retention, and what for.
-- `doctor` compares it with what the role has, `init --role-prefix` grants it. {schema} and {table} are those of the outbox
-- table, quoted.
values
    ('schema', 'outbox', 'usage', 'both', 'it reaches its own tables'),
    ('schema', '{schema}', 'usage', 'both', 'it reaches the outbox table'),
    ('table', '{table}', 'select', 'both', 'it reads the events'),
    ('table', 'outbox.relay', 'select', 'both', 'it looks which name serves which table'),
    ('table', 'outbox.relay', 'insert', 'both', 'it registers its name'),
    ('table', 'outbox.relay', 'update', 'both', 'it acknowledges its position'),
    ('table', 'outbox.marks', 'select', 'both', 'it looks when it wrote the last mark'),
    ('table', 'outbox.marks', 'insert', 'both', 'it marks what was published when'),
    ('table', '{table}', 'delete', 'retention', 'retention deletes what was published long ago'),
    ('table', 'outbox.marks', 'delete', 'retention', 'retention deletes marks that are too old to matter'),
    ('table', 'outbox.parked', 'select', 'both', 'it looks what waits'),
    ('table', 'outbox.parked', 'insert', 'both', 'it sets a transaction aside'),
    ('table', 'outbox.parked', 'update', 'both', 'it settles what waited'),
    ('table', 'outbox.parked_events', 'select', 'both', 'it publishes what waited'),
    ('table', 'outbox.parked_events', 'insert', 'both', 'it keeps the events of what waits'),
    ('table', 'outbox.parked_events', 'delete', 'both', 'it begins anew with what was left half kept'),
    ('table', 'outbox.parked_audit', 'insert', 'both', 'it notes what was done'),
    ('table', 'outbox.migrations', 'select', 'both', 'doctor looks whether the schema is up to date'),
    ('table', 'outbox.slots', 'select', 'wal', 'it looks where its slot was made'),
    ('function', 'pg_catalog.pg_log_standby_snapshot()', 'execute', 'wal', 'its slot lets go of WAL sooner')
