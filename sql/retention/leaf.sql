-- What a leaf holds: its first row and its last by the index, and whether there is one that must stay.
select (select o.{seq} from only {table} o order by o.{xid}, o.{seq} limit 1),
       (select o.{seq} from only {table} o order by o.{xid} desc, o.{seq} desc limit 1),
       {stays}
