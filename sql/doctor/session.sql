-- What a lease sets for its session.
set idle_session_timeout = {lease_ms}
