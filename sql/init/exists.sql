select to_regclass('outbox.migrations') is not null, to_regnamespace('outbox') is not null, current_setting('server_version_num')::int
