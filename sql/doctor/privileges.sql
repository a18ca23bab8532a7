-- What the role lacks of what it needs, with the statement that grants it. By name from the catalog: a role that may not use
-- a schema may not look for an object in it by to_regclass.
with needs (kind, object, privilege, capture, purpose) as (
{needs}
), found as (
    select needs.*, c.oid as class
    from needs left join (pg_class c join pg_namespace n on n.oid = c.relnamespace)
         on needs.kind = 'table' and quote_ident(n.nspname) || '.' || quote_ident(c.relname) = needs.object
    where needs.capture in ('both', $1) or needs.capture = 'retention' and $2
    union all
    -- The leaves of a ring: retention looks into them, and truncates or deletes.
    select 'table', leaf.relid::regclass::text, needed.privilege, 'retention', 'retention empties it', leaf.relid::oid
    from needs join (pg_class c join pg_namespace n on n.oid = c.relnamespace)
             on needs.object = quote_ident(n.nspname) || '.' || quote_ident(c.relname),
         pg_partition_tree(c.oid) leaf, unnest('{select,delete,truncate}'::text[]) needed (privilege)
    where needs.kind = 'table' and needs.capture = 'retention' and needs.privilege = 'delete' and $2
      and leaf.isleaf and leaf.level > 0
)
select coalesce(jsonb_agg(jsonb_build_object('privilege', privilege, 'kind', kind, 'object', object, 'purpose', purpose)), '[]')
from found
where not coalesce(case kind
    when 'schema' then has_schema_privilege(to_regnamespace(object)::oid, privilege)
    when 'function' then has_function_privilege(to_regprocedure(object)::oid, privilege)
    else has_table_privilege(class, privilege)
end, true)
