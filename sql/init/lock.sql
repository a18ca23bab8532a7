-- Two inits at once: the second waits for the first. Released at the end of the transaction.
select pg_advisory_xact_lock(hashtextextended('outbox-relay init', 0))
