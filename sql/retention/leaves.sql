-- The leaves of a partitioned table; none of a plain one.
select t.relid::regclass::text from pg_partition_tree($1::text::regclass) t where t.isleaf and t.level > 0 order by t.relid
