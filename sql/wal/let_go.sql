-- A slot lets go of WAL up to the last record of this kind, and the server writes one every 15 s by itself.
select pg_log_standby_snapshot()
