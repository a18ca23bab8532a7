-- The relay's positions, a minute apart; the first one may be where it began.
select m.position::text, m.at < r.started_at + interval '5 seconds'
from outbox.marks m join outbox.relay r using (name)
where name = $1
order by m.at
