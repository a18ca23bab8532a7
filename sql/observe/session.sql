-- Whoever only looks must not hold anything up: nothing is waited for, and nothing takes long.
set statement_timeout = 1000;
set lock_timeout = 200;
set default_transaction_read_only = on;
set application_name = 'outbox-relay sampler'
