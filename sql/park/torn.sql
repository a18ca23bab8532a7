select p.id
from outbox.parked p
where p.id = any ($1)
  and p.events <> (select count(*) from outbox.parked_events e where e.parked_id = p.id and e.index >= 0 and e.index < p.events)
