-- What the position passes over must not be lost by a crash.
begin; set local synchronous_commit = on
