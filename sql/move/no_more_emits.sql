-- From now on outbox.emit is refused.
update outbox.relay set capture = 'table' where name = $1
