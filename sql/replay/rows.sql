-- The retained rows that a replay selects, each with its place in its whole transaction: transactions in the order of their
-- last insert, rows in that of theirs. A value that is null selects all.
select * from (
    select {xid}::text, {columns},
           row_number() over (partition by {xid} order by {seq}) - 1,
           count(*) over (partition by {xid}),
           max({seq}) over (partition by {xid}) as last_seq_of_it,
           max({occurred_at}) over (partition by {xid}) as occurred_at_of_it,
           {xid} as xid_of_it, {id}::uuid as id_of_it, {key} as key_of_it
    from {table}
) e
where ($1::text is null or xid_of_it = $1::text::xid8)
  and ($2::text is null or occurred_at_of_it >= $2::text::timestamptz)
  and ($3::text is null or occurred_at_of_it < $3::text::timestamptz)
  and ($4::text is null or id_of_it = $4::text::uuid)
  and ($5::text is null or key_of_it = $5::text)
order by last_seq_of_it, {seq}
