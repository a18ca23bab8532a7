-- Asynchronous commits are flushed within 3 * wal_writer_delay; a synchronous commit of ours flushes them now.
begin;
set local synchronous_commit = local;
select pg_logical_emit_message(true, 'outbox-relay', '');
commit
