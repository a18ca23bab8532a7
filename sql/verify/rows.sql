-- Where each retained event must appear, transaction by transaction, in order of insertion.
select e.{xid}::text, {place} from {table} e order by e.{xid}, e.{seq}
