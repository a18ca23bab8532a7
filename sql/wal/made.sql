-- When the slot was made, and whether the table holds rows that had committed by then.
select s.consistent_lsn::text, exists (select from {table} where {older}),
       case when s.exported then s.snapshot end
from outbox.slots s
where s.slot = $1 and s.consistent_lsn is not null
