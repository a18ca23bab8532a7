-- One wish at a time: a relay may be acting on the one before. No ids: all.
with changed as (
    update outbox.parked set requested = $2
    where relay = $1 and state = 'parked' and requested is null and (cardinality($3::bigint[]) = 0 or id = any ($3))
    returning id
), noted as (
    insert into outbox.parked_audit (parked_id, action, reason) select id, $2, $4 from changed
)
select id from changed order by id
