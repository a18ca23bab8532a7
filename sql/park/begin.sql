-- What the position passes over must not be lost by a crash. A relay that stands still in the middle must not keep its successor
-- from the row for long.
begin;
set local synchronous_commit = on;
set local idle_in_transaction_session_timeout = '10s'
