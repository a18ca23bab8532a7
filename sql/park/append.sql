with sized as (
    update outbox.parked set bytes = $11, keys = $12 where id = $1
)
insert into outbox.parked_events (parked_id, index, seq, id, topic, key, event_type, payload, headers, occurred_at_ms)
select $1, e.*
from unnest($2::bigint[], $3::bigint[], $4::uuid[], $5::text[], $6::bytea[], $7::text[], $8::bytea[], $9::json[], $10::bigint[]) e
