-- The newest mark that is old enough, beside the position that was acknowledged last. No row if another process than this one
-- acknowledged it: then it is not known yet where the relay stands.
select m.at::text, m.position::text, r.position::text
from outbox.relay r
cross join lateral (
    select at, position from outbox.marks
    where name = r.name and at < now() - $3::int * interval '1 minute'
    order by at desc limit 1) m
where r.name = $1 and r.lease_holder = $2
