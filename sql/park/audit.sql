select a.at::text, a.who, a.action, a.reason
from outbox.parked_audit a join outbox.parked p on p.id = a.parked_id
where p.relay = $1 and p.id = $2 order by a.at
