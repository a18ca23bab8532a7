-- Asked in turn on two connections that are open at once: through a pooler in transaction mode both may reach one session.
select pg_backend_pid(), (select setting::bigint from pg_settings where name = 'idle_session_timeout')
