select state, version from demo.backup_requests where id = $1 for update
