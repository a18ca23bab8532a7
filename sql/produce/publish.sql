-- One use case: so many events of one aggregate, by the one-line form. One statement, so one transaction.
select pg_current_xact_id()::text, count(outbox.publish(
    $1, $2, jsonb_build_object('producer', $3::int, 'number', n, 'of', $4::int), event_type => 'Produced'))
from generate_series(1, $4::int) n
