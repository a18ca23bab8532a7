-- Marks that are older than the one that was used: what they cover is gone. But for the first: verify knows by it what the
-- relay left out when it began.
delete from outbox.marks where ctid = any (array(
    select m.ctid from outbox.marks m join outbox.relay r using (name)
    where m.name = $1 and m.at < $2::text::timestamptz and m.at >= r.started_at + interval '5 seconds'
    order by m.at limit $3))
