-- Schema outbox; by name from the catalog, for a role that may not use it.
select jsonb_build_object(
    'exists', to_regnamespace('outbox') is not null,
    'is_ours', m.oid is not null,
    'may_read', coalesce(has_schema_privilege(to_regnamespace('outbox')::oid, 'usage') and has_table_privilege(m.oid, 'select'), false))
from (select) one
left join pg_class m on m.relname = 'migrations' and m.relnamespace = to_regnamespace('outbox')
