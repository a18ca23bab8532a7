-- {lease_ms} in milliseconds. The server ends a silent session, and with it the lock.
set idle_session_timeout = {lease_ms};
set application_name = 'outbox-relay lease'
