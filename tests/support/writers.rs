//! Writers with a ledger: what they committed is in table `ledger`, written in the same transactions.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt;
use outbox_relay::database::Database;
use outbox_relay::ledger::{CommittedEvent, Ledger};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use uuid::Uuid;

use super::servers::TestDatabase;

const SETUP: &str = "
create table aggregate (id int primary key, version bigint not null default 0);
create table ledger (tx text not null, ord int not null, id uuid not null, topic text not null, key text not null, version bigint not null);
create function use_case(tx text, prefix text, keys int[], events int, early boolean, undo boolean) returns void language plpgsql as $$
declare k int; v bigint; e uuid; t text; n int := 0;
begin
    -- The xid is taken early and used late: another transaction with a higher xid commits on the same key before.
    if early then perform pg_current_xact_id(); perform pg_sleep(random() * 0.02); end if;
    foreach k in array keys loop
        select version into v from aggregate where id = k for update;
        t := prefix || (k % 3);
        for i in 1..events loop
            n := n + 1;
            begin
                e := outbox.publish(t, k::text, tx || '/' || n, 'Happened', jsonb_build_object('version', v + 1));
                insert into ledger values (tx, n, e, t, k::text, v + 1);
                if undo and i % 2 = 1 then raise exception 'undo' using errcode = 'P0001'; end if;
                v := v + 1;
            exception when raise_exception then null;
            end;
        end loop;
        update aggregate set version = v where id = k;
    end loop;
end $$;
";

/// How the writers behave.
#[derive(Clone, Copy)]
pub struct Load {
    pub writers: usize,
    pub keys: usize,
    /// Pause of each writer between its transactions.
    pub pause: Duration,
    /// Of a hundred writers, so many commit asynchronously.
    pub asynchronous_percent: usize,
    pub prepared: bool,
    /// Further writers whose transactions stay open for up to so long, each on a key of its own.
    pub long_writers: usize,
    pub long_max: Duration,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            writers: 20,
            keys: 50,
            pause: Duration::from_millis(20),
            asynchronous_percent: 0,
            prepared: true,
            long_writers: 0,
            long_max: Duration::ZERO,
        }
    }
}

/// What a writer calls: `events` events on `key`. With `undo` every other one is rolled back to its savepoint.
pub fn use_case(tx: &str, prefix: &str, key: i32, events: i32, undo: bool) -> String {
    format!("select use_case('{tx}', '{prefix}', array[{key}], {events}, false, {undo})")
}

/// Makes the ledger, `keys` aggregates, and the function that writers call.
pub async fn set_up(database: &TestDatabase, keys: usize) {
    let client = database.connect().await;
    client
        .batch_execute(SETUP)
        .await
        .expect("set-up of the writers");
    let keys = format!("insert into aggregate (id) select generate_series(1, {keys})");
    client.batch_execute(&keys).await.expect("aggregates");
}

/// Writers at work; [`Writers::stop`] lets them finish.
pub struct Writers {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Writers {
    /// Starts `load` on `database`; events go to topics `{prefix}0` to `{prefix}2`.
    pub async fn start(database: &TestDatabase, prefix: &str, load: Load) -> Self {
        set_up(database, load.keys + load.long_writers).await;
        let stop = Arc::new(AtomicBool::new(false));
        let committed = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for writer in 0..load.writers + load.long_writers {
            let writer = Writer {
                number: writer,
                database: database.database(),
                // Unique on the server, not in the database.
                gid: format!("{}-{writer}", database.name),
                prefix: prefix.to_owned(),
                load,
                stop: stop.clone(),
                committed: committed.clone(),
            };
            tasks.spawn(writer.run());
        }
        Self {
            stop,
            committed,
            tasks,
        }
    }

    /// Transactions whose commit was confirmed.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Waits until this many more are committed.
    pub async fn more(&self, transactions: u64) {
        let goal = self.committed() + transactions;
        super::until("more commits", 60, async || self.committed() >= goal).await;
    }

    /// Lets them finish.
    pub async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a writer");
        }
    }
}

struct Writer {
    number: usize,
    database: Database,
    gid: String,
    prefix: String,
    load: Load,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
}

impl Writer {
    /// The server may be killed under it at any time: it connects again.
    async fn run(self) {
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(client) = self.database.connect().await else {
                sleep(Duration::from_millis(fastrand::u64(20..200))).await;
                continue;
            };
            // What it prepared before the server went away still holds its locks; an error says that there is nothing.
            let _ = client
                .batch_execute(&format!("commit prepared '{}'", self.gid))
                .await;
            if self.number % 100 < self.load.asynchronous_percent
                && client
                    .batch_execute("set synchronous_commit = off")
                    .await
                    .is_err()
            {
                continue;
            }
            while !self.stop.load(Ordering::Relaxed) {
                number += 1;
                let ended = if self.number < self.load.writers {
                    self.transaction(&client, number).await
                } else {
                    self.long_transaction(&client, number).await
                };
                match ended {
                    Ok(true) => _ = self.committed.fetch_add(1, Ordering::Relaxed),
                    Ok(false) => {}
                    // A deadlock or the like leaves the connection usable, a killed server does not.
                    Err(_) if client.batch_execute("rollback").await.is_ok() => {}
                    Err(_) => break,
                }
                sleep(self.load.pause.mul_f64(fastrand::f64() * 2.0)).await;
            }
        }
    }

    /// One use case; `Ok(true)` if it was committed.
    async fn transaction(
        &self,
        client: &Client,
        number: u64,
    ) -> Result<bool, tokio_postgres::Error> {
        let tx = format!("w{}-{number}", self.number);
        let mut keys: Vec<i32> = (0..fastrand::usize(1..=2))
            .map(|_| fastrand::i32(1..=self.load.keys as i32))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        client.batch_execute("begin").await?;
        let (early, undo) = (fastrand::u8(0..4) == 0, fastrand::u8(0..5) == 0);
        let call = format!(
            "select use_case('{tx}', '{}', array{keys:?}, {}, {early}, {undo})",
            self.prefix,
            fastrand::u8(1..=4),
        );
        client.batch_execute(&call).await?;
        match fastrand::u8(0..20) {
            0..3 => client.batch_execute("rollback").await.map(|()| false),
            3 if self.load.prepared => {
                client
                    .batch_execute(&format!("prepare transaction '{}'", self.gid))
                    .await?;
                sleep(Duration::from_millis(fastrand::u64(0..100))).await;
                client
                    .batch_execute(&format!("commit prepared '{}'", self.gid))
                    .await
                    .map(|()| true)
            }
            _ => client.batch_execute("commit").await.map(|()| true),
        }
    }

    /// Stays open for long after its inserts. Some are larger than a batch of the relay may be.
    async fn long_transaction(
        &self,
        client: &Client,
        number: u64,
    ) -> Result<bool, tokio_postgres::Error> {
        let key = self.load.keys + 1 + self.number - self.load.writers;
        client.batch_execute("begin").await?;
        let call = format!(
            "select use_case('long{}-{number}', '{}', array[{key}], {}, true, false)",
            self.number,
            self.prefix,
            fastrand::u16(1..1_500),
        );
        client.batch_execute(&call).await?;
        let until = Instant::now() + self.load.long_max.mul_f64(fastrand::f64());
        while Instant::now() < until && !self.stop.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(100)).await;
        }
        client.batch_execute("commit").await.map(|()| true)
    }
}

/// What was committed, from the database itself. Prepared transactions that a crash left behind are committed first.
pub async fn ledger(database: &TestDatabase) -> Ledger {
    let client = database.connect().await;
    finish_prepared(&client, &database.name).await;
    let rows = client
        .query_raw(
            "select tx, id, topic, key, version from ledger order by tx, ord",
            std::iter::empty::<i32>(),
        )
        .await
        .expect("the ledger");
    // Row by row: a long run has millions.
    let mut rows = pin!(rows);
    let mut ledger = Ledger::new();
    let (mut tx, mut events) = (String::new(), Vec::new());
    while let Some(row) = rows.try_next().await.expect("a row of the ledger") {
        let of: String = row.get(0);
        if of != tx {
            commit(&mut ledger, std::mem::replace(&mut tx, of), &mut events);
        }
        events.push(CommittedEvent {
            id: row.get::<_, Uuid>(1),
            topic: row.get(2),
            key: row.get(3),
            version: row.get::<_, i64>(4).unsigned_abs(),
        });
    }
    commit(&mut ledger, tx, &mut events);
    ledger
}

fn commit(ledger: &mut Ledger, tx: String, events: &mut Vec<CommittedEvent>) {
    if !events.is_empty() {
        ledger.commit(tx, events.drain(..));
    }
}

/// Commits what is prepared and left alone.
pub async fn finish_prepared(client: &Client, database: &str) {
    let rows = client
        .query(
            "select gid from pg_prepared_xacts where database = $1",
            &[&database],
        )
        .await
        .expect("prepared transactions");
    for row in rows {
        let gid: String = row.get(0);
        client
            .batch_execute(&format!("commit prepared '{gid}'"))
            .await
            .expect("commit prepared");
    }
}
