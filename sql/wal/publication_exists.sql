select exists (select from pg_publication where pubname = $1)
