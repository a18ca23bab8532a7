update demo.backup_requests set state = $2, version = $3 where id = $1
