-- The publication $1, and what it says of the table $2.$3; no row where there is none.
select jsonb_build_object(
    'publishes_inserts', p.pubinsert, 'through_root', p.pubviaroot,
    'has_table', t.tablename is not null, 'row_filter', to_jsonb(t) ->> 'rowfilter', 'columns', to_jsonb(t) -> 'attnames')
from pg_publication p
left join pg_publication_tables t on t.pubname = p.pubname and t.schemaname = $2 and t.tablename = $3
where p.pubname = $1
