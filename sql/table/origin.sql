-- Timeline from the name of the WAL file in use: pg_control_checkpoint() lags behind after a promotion (measured).
select (select system_identifier::text from pg_control_system()),
       ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int,
       (select oid from pg_database where datname = current_database()),
       pg_snapshot_xmax(pg_current_snapshot())::text,
       current_setting('server_version_num')::int
