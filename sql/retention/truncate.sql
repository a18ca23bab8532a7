-- nowait: whoever waits for this lock makes all that come later wait behind it. Under it nobody has written here and not
-- ended, prepared transactions included, so a look sees all rows there are.
do $$ begin
    lock table only {table} in access exclusive mode nowait;
    if not {stays} then truncate only {table}; end if;
end $$
