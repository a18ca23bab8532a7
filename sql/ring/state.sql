-- What the table is, whether it holds rows, and the publications that name it.
select c.relkind = 'p', exists (select from outbox.events),
       (select string_agg(p.pubname::text, ', ' order by p.pubname) from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
        where r.prrelid = c.oid)
from pg_class c
where c.oid = 'outbox.events'::regclass
