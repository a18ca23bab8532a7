-- What PostgreSQL takes the text for.
select $1::text::timestamptz::text
