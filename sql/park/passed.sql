-- The record names them in order; what was confirmed before is left alone.
with named as (
    select tx_id, place from unnest($2::text[]) with ordinality t (tx_id, place)
), changed as (
    update outbox.parked p
    set state = case when p.fault is null then 'held' else 'parked' end,
        place = coalesce((select max(place) from outbox.parked where relay = $1 and state in ('parked', 'held')), 0) + n.place
    from named n
    where p.relay = $1 and p.tx_id = n.tx_id and p.state = 'pending'
    returning p.id, p.state, p.fault
)
insert into outbox.parked_audit (parked_id, action, reason) select id, state, fault from changed
