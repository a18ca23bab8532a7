with changed as (
    update outbox.parked p
    set state = case when p.requested = 'discard' then 'discarded' else 'published' end, requested = null, settled_at = now()
    where p.relay = $1 and p.tx_id = any ($2::text[]) and p.state in ('parked', 'held')
    returning p.id, p.state
)
insert into outbox.parked_audit (parked_id, action) select id, state from changed
