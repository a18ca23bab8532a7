-- Whoever only looks must not hold anything up: nothing is waited for, and nothing takes long.
set statement_timeout = 1000;
set lock_timeout = 200;
-- Rows come by the one index. A planner without statistics would rather sort the table after a bulk insert (measured).
set enable_sort = off;
set enable_seqscan = off;
set default_transaction_read_only = on;
set application_name = 'outbox-relay sampler'
