-- When it grew quiet, what came last has no mark yet: the relay marks a position a minute, and only while it moves.
insert into outbox.marks (name, position)
select r.name, r.position
from outbox.relay r
left join lateral (select at, position from outbox.marks where name = r.name order by at desc limit 1) m on true
where r.name = $1 and r.lease_holder = $2
  and (m.at is null or m.at <= now() - interval '1 minute' and m.position is distinct from r.position)
