(exists (select from only {table} o where o.{xid} >= '{xmax}') or
 exists (select from only {table} o where o.{xid} = any ('{in_progress}'::xid8[])))
