//! Publication and replication slot, made once.

use std::time::Duration;

use tokio::time::{interval, sleep};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::postgres::lsn;
use super::wire::{TextRow, Wire};
use crate::capture::CaptureSettings;
use crate::capture::columns::names;
use crate::database::Database;
use crate::fault::{Fault, Server};
use crate::position::{Lsn, Snapshot};

/// How often a slot is made anew that the server could not make, and the pause between.
const TRIES: u32 = 60;
const TRY_EVERY: Duration = Duration::from_secs(1);
/// How often it is told who keeps us waiting.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// A slot that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// All that commits beyond it is streamed.
    pub consistent: Lsn,
    /// What had committed by then, and is not streamed.
    pub seen: Snapshot,
}

/// The SQL that makes both, for people who may not run DDL from a tool. Not in one transaction: PostgreSQL makes no slot in
/// a transaction that has written.
#[must_use]
pub fn script(settings: &CaptureSettings) -> String {
    let fill = |sql: &str| {
        names(&settings.table, &settings.columns, sql).replace("{slot}", &settings.slot)
    };
    fill(include_str!("../../../sql/wal/publication.sql"))
        + ";\n"
        + &fill(include_str!("../../../sql/wal/slot.sql"))
}

/// Makes the publication if there is none; answers whether it did.
///
/// # Errors
/// [`Fault::Refused`] if the role may not.
pub async fn make_publication(
    database: &Database,
    settings: &CaptureSettings,
) -> Result<bool, Fault> {
    let client = database.connect().await?;
    let exists = include_str!("../../../sql/wal/publication_exists.sql");
    let exists = client
        .query_typed_one(exists, &[(&settings.slot, Type::TEXT)])
        .await?;
    if exists.try_get(0)? {
        return Ok(false);
    }
    let publication = include_str!("../../../sql/wal/publication.sql");
    let publication = names(&settings.table, &settings.columns, publication);
    client
        .batch_execute(&publication.replace("{slot}", &settings.slot))
        .await?;
    Ok(true)
}

/// Makes the slot if there is none; `None`: it was there. Making it waits for all transactions that are open, prepared ones
/// included; `waiting` hears which.
///
/// `outbox.slots` knows of it before it exists, so a slot that was left half made is known as ours.
///
/// # Errors
/// [`Fault::Refused`] if the server can't, the role may not, or a slot of this name is somebody else's.
pub async fn make_slot(
    database: &Database,
    settings: &CaptureSettings,
    mut waiting: impl FnMut(&str),
) -> Result<Option<Made>, Fault> {
    let client = database.connect().await?;
    let slot = &settings.slot;
    let state = include_str!("../../../sql/wal/slot_state.sql");
    let state = client.query_typed_one(state, &[(slot, Type::TEXT)]).await?;
    let (exists, begun, done): (bool, bool, bool) =
        (state.try_get(0)?, state.try_get(1)?, state.try_get(2)?);
    match (exists, begun, done) {
        (true, _, true) => return Ok(None),
        (true, false, _) => {
            return Err(Fault::Refused(format!(
                "replication slot {slot} exists and was not made by outbox-relay; choose another --slot, or drop it with \
                 select pg_drop_replication_slot('{slot}')"
            )));
        }
        (true, true, false) => drop_slot(&client, slot).await?,
        (false, ..) => {}
    }
    let begin = include_str!("../../../sql/wal/slot_begun.sql");
    client.query_typed(begin, &[(slot, Type::TEXT)]).await?;
    let mut tries = 1;
    loop {
        let fault = match create(database, &client, slot, &mut waiting).await {
            Err(fault @ Fault::Unavailable(..)) if tries < TRIES => fault,
            made => return made.map(Some),
        };
        // Where some thousand subtransactions are open the server can't export a snapshot of them (SQLSTATE 40001).
        waiting(&format!("{fault}; trying again"));
        tries += 1;
        sleep(TRY_EVERY).await;
        drop_slot(&client, slot).await?;
    }
}

/// The statement for the outbox table.
#[must_use]
pub fn filled(settings: &CaptureSettings, sql: &str) -> String {
    names(&settings.table, &settings.columns, sql)
}

/// Where the slot stands: all that commits beyond is streamed.
///
/// # Errors
/// [`Fault::Refused`] if there is none.
pub async fn stands_at(client: &Client, slot: &str) -> Result<Lsn, Fault> {
    let stands_at = include_str!("../../../sql/move/stands_at.sql");
    let rows = client
        .query_typed(stands_at, &[(&slot, Type::TEXT)])
        .await?;
    let place = rows.first().map(|row| lsn(row.try_get(0)?)).transpose()?;
    place.ok_or_else(|| Fault::Refused(format!("there is no replication slot {slot}")))
}

/// Where the WAL ends now.
///
/// # Errors
/// Those of the server.
pub async fn written(client: &Client) -> Result<Lsn, Fault> {
    let written = include_str!("../../../sql/wal/written.sql");
    lsn(client.query_typed_one(written, &[]).await?.try_get(0)?)
}

/// Drops the slot if it is there. One that is in use is not dropped.
///
/// # Errors
/// [`Fault::Unavailable`] while something streams from it.
pub async fn drop_slot(client: &Client, slot: &str) -> Result<(), Fault> {
    let drop = include_str!("../../../sql/wal/slot_drop.sql");
    client.query_typed(drop, &[(&slot, Type::TEXT)]).await?;
    Ok(())
}

async fn create(
    database: &Database,
    client: &Client,
    slot: &str,
    waiting: &mut impl FnMut(&str),
) -> Result<Made, Fault> {
    let mut wire = primary(database, async |_| Ok(())).await?;
    let version: i32 = client
        .query_typed_one("select current_setting('server_version_num')::int", &[])
        .await?
        .try_get(0)?;
    // A slot that standbys keep too goes on after a failover (17 and newer).
    let options = match version {
        170_000.. => "(SNAPSHOT 'export', FAILOVER true)",
        _ => "EXPORT_SNAPSHOT",
    };
    let command = format!("CREATE_REPLICATION_SLOT \"{slot}\" LOGICAL pgoutput {options}");
    let created = {
        let create = wire.query_one(&command);
        tokio::pin!(create);
        let mut tell = interval(TELL_EVERY);
        tell.tick().await;
        loop {
            tokio::select! {
                created = &mut create => break created?,
                _ = tell.tick() => waiting(&format!(
                    "making the replication slot waits for open transactions: {}",
                    blockers(client).await?
                )),
            }
        }
    };
    let made = exported(database, &created).await?;
    let done = include_str!("../../../sql/wal/slot_done.sql");
    let values: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] = [
        (&slot, Type::TEXT),
        (&made.consistent.to_string(), Type::TEXT),
        (&made.seen.to_string(), Type::TEXT),
    ];
    client.query_typed(done, &values).await?;
    drop(wire);
    Ok(made)
}

/// The place and the snapshot of a new slot; the snapshot lives as long as the session that exported it does nothing else.
async fn exported(database: &Database, created: &TextRow) -> Result<Made, Fault> {
    let column = |index: usize| created.get(index).cloned().flatten().unwrap_or_default();
    let (consistent, snapshot) = (column(1), column(2));
    let client = database.connect().await?;
    client
        .batch_execute("begin isolation level repeatable read read only")
        .await?;
    let quoted = snapshot.replace('\'', "''");
    client
        .batch_execute(&format!("set transaction snapshot '{quoted}'"))
        .await?;
    let row = client
        .query_typed_one(include_str!("../../../sql/table/snapshot.sql"), &[])
        .await?;
    Ok(Made {
        consistent: lsn(&consistent)?,
        seen: exported_snapshot(row.try_get(0)?)?,
    })
}

/// The snapshot of a new slot may end before it begins, such as `50:46:` (measured): nothing was open, and nothing at or above
/// the first number had begun (`SnapBuildInitialSnapshot`, `XidInMVCCSnapshot`).
fn exported_snapshot(text: &str) -> Result<Snapshot, Fault> {
    let defect = || Fault::Defect(format!("{text:?} is no snapshot"));
    let (xmin, rest) = text.split_once(':').ok_or_else(defect)?;
    let (xmax, _) = rest.split_once(':').ok_or_else(defect)?;
    let begins_after_its_end = match (xmin.parse::<u64>(), xmax.parse::<u64>()) {
        (Ok(xmin), Ok(xmax)) => xmin > xmax,
        _ => return Err(defect()),
    };
    let text = match begins_after_its_end {
        true => format!("{xmin}:{xmin}:"),
        false => text.to_owned(),
    };
    text.parse().map_err(|_| defect())
}

/// System identifier of the cluster that a replication connection reaches.
///
/// # Errors
/// Those of the login.
pub async fn streams_from(database: &Database) -> Result<String, Fault> {
    let mut wire = primary(database, async |_| Ok(())).await?;
    let system = wire.query_one("IDENTIFY_SYSTEM").await?;
    Ok(system.first().cloned().flatten().unwrap_or_default())
}

/// Whom the slot, or a move, waits for.
///
/// # Errors
/// Those of the server.
pub async fn blockers(client: &Client) -> Result<String, Fault> {
    let open = include_str!("../../../sql/wal/blockers.sql");
    let rows = client.query_typed(open, &[]).await?;
    let names: Vec<String> = rows
        .iter()
        .map(|row| row.try_get(0))
        .collect::<Result<_, _>>()?;
    Ok(match names.is_empty() {
        true => "none is known".to_owned(),
        false => names.join(", "),
    })
}

/// A session with the first host of the address that is a primary and that `is_meant`.
pub(super) async fn primary(
    database: &Database,
    is_meant: impl AsyncFn(&mut Wire) -> Result<(), Fault>,
) -> Result<Wire, Fault> {
    let mut last = Fault::Defect("an address without a host".into());
    for host in 0..database.hosts() {
        let login = async {
            let mut wire = Wire::login(database.dial(host).await?, &database.credentials()).await?;
            let standby = wire.query_one(include_str!("../../../sql/table/standby.sql"));
            match standby.await?.first() {
                Some(Some(no)) if no == "f" => {}
                _ => {
                    return Err(Fault::Unavailable(
                        Server::Postgres,
                        "it is a standby".into(),
                    ));
                }
            }
            is_meant(&mut wire).await?;
            Ok(wire)
        };
        match login.await {
            Ok(wire) => return Ok(wire),
            Err(fault) => last = fault,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_that_ends_before_it_begins_has_seen_all_below() {
        let read = |text: &str| exported_snapshot(text).unwrap().to_string();
        assert_eq!(read("6850:6846:"), "6850:6850:");
        assert_eq!(read("6850:6855:6850,6852"), "6850:6855:6850,6852");
        assert!(exported_snapshot("6850").is_err() && exported_snapshot("a:b:").is_err());
    }
}
