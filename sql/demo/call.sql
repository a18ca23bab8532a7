insert into demo.calls (request) values ($1)
