begin;
set local lock_timeout = '5s';
lock table outbox.events in access exclusive mode
