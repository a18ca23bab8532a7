-- The outbox table, as far as the relay depends on it; no row where there is none. $3 is the column for seq.
select jsonb_build_object(
    'schema', quote_ident(n.nspname),
    'name', quote_ident(n.nspname) || '.' || quote_ident(c.relname),
    'is_partitioned', c.relkind = 'p',
    'hides_rows', row_security_active(c.oid),
    'unlogged', (
        select coalesce(jsonb_agg(p.oid::regclass::text order by p.oid), '[]') from pg_class p
        where p.relpersistence <> 'p' and p.relkind <> 'p' and p.oid in (select c.oid union all select relid from pg_partition_tree(c.oid))),
    'columns', (
        select jsonb_object_agg(a.attname, jsonb_build_object(
            'type', format_type(a.atttypid, null), 'not_null', a.attnotnull, 'identity', a.attidentity <> '',
            'default', pg_get_expr(d.adbin, d.adrelid)))
        from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
    -- Of each index that holds all rows, its columns in order.
    'indexes', (
        select coalesce(jsonb_agg((
            select jsonb_agg(a.attname order by k.place)
            from unnest(i.indkey::int2[]) with ordinality k (number, place)
            join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number)), '[]')
        from pg_index i where i.indrelid = c.oid and i.indisvalid and i.indpred is null),
    'sequence', (
        select jsonb_build_object('name', s.seqrelid::regclass::text, 'cache', s.seqcache, 'increment', s.seqincrement, 'cycles', s.seqcycle)
        from pg_attribute a
        left join pg_attrdef def on def.adrelid = a.attrelid and def.adnum = a.attnum
        join pg_depend o on o.refclassid = 'pg_class'::regclass and o.refobjid = c.oid and o.refobjsubid = a.attnum
                            and o.classid = 'pg_class'::regclass and o.deptype in ('a', 'i')
                         or o.classid = 'pg_attrdef'::regclass and o.objid = def.oid and o.refclassid = 'pg_class'::regclass
        join pg_sequence s on s.seqrelid in (o.objid, o.refobjid)
        where a.attrelid = c.oid and a.attname = $3
        limit 1),
    -- Before each inserted row (bits 1, 2, 4): it may change the row, or suppress it.
    'triggers', (
        select coalesce(jsonb_agg(quote_ident(t.tgname) order by t.tgname), '[]')
        from pg_trigger t join pg_proc f on f.oid = t.tgfoid
        where t.tgrelid = c.oid and not t.tgisinternal and t.tgenabled <> 'D' and t.tgtype & 7 = 7
              and f.pronamespace <> coalesce(to_regnamespace('outbox')::oid, 0)),
    'rules', (
        select coalesce(jsonb_agg(quote_ident(w.rulename) order by w.rulename), '[]')
        from pg_rewrite w where w.ev_class = c.oid and w.ev_type = '3' and w.is_instead and w.ev_enabled <> 'D'))
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p', 'v', 'm', 'f')
