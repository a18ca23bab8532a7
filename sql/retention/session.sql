-- Nobody waits behind us, and we wait for nobody for long. A lost deletion is made up for, so no standby need confirm it; but
-- it is flushed at once: the relay hands nothing out before all WAL that was written earlier is.
set application_name = 'outbox-relay retention';
set search_path = pg_catalog;
set lock_timeout = {lock_ms};
set statement_timeout = {statement_ms};
set synchronous_commit = local
