with changed as (
    update outbox.parked set state = 'parked', fault = $2, requested = null, attempts = attempts + 1, last_at = now()
    where id = $1 and state in ('parked', 'held')
    returning id
)
insert into outbox.parked_audit (parked_id, action, reason) select id, 'failed', $2 from changed
