//! `outbox.relay`: which name serves which table. A copy and a guard; the truth is the sink's position.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::CaptureSettings;
use crate::database::Value;
use crate::fault::Fault;
use crate::position::Position;

/// A row of `outbox.relay`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Name of a relay.
    pub name: String,
    /// The table that it serves.
    pub table: String,
}

/// Whether the name is registered for the table, from the registrations of both. Pure.
///
/// # Errors
/// [`Fault::Refused`] if another name serves the table, or the name another table.
pub(crate) fn registered(
    settings: &CaptureSettings,
    known: &[Registration],
) -> Result<bool, Fault> {
    let (name, table) = (&settings.name, &settings.table);
    for registration in known {
        if registration.name != *name {
            return Err(served_by_another(table, &registration.name));
        }
        if registration.table != *table {
            return Err(Fault::Refused(format!(
                "relay {name} serves table {}; give the relay of {table} another --name",
                registration.table
            )));
        }
    }
    Ok(!known.is_empty())
}

/// Registered, but the sink has no position: no first start.
pub(crate) fn lost_position(name: &str) -> Fault {
    Fault::Refused(format!(
        "relay {name} is registered in outbox.relay but has no position in Kafka: its position topic was deleted or this is \
         another Kafka cluster; restore the topic, or, if all may be published again, delete the row of {name} from outbox.relay"
    ))
}

fn served_by_another(table: &str, name: &str) -> Fault {
    Fault::Refused(format!(
        "table {table} is served by another relay than this one (registered: {name}); one name serves a table: use it, \
         or take over with `outbox-relay adopt --from {name}`"
    ))
}

/// The registrations of this name and of this table.
pub(crate) async fn registrations(
    client: &Client,
    settings: &CaptureSettings,
) -> Result<Vec<Registration>, Fault> {
    let values: [Value; 2] = [(&settings.name, Type::TEXT), (&settings.table, Type::TEXT)];
    let registered = include_str!("../../sql/relay/registered.sql");
    let rows = client.query_typed(registered, &values).await?;
    rows.iter()
        .map(|row| {
            Ok(Registration {
                name: row.try_get(0)?,
                table: row.try_get(1)?,
            })
        })
        .collect()
}

/// The position that was written last; what it covers was committed before that, so a server that has the one has the other.
pub(crate) async fn acknowledged(
    client: &Client,
    settings: &CaptureSettings,
) -> Result<Option<Position>, Fault> {
    let acknowledged = include_str!("../../sql/relay/acknowledged.sql");
    let rows = client
        .query_typed(acknowledged, &[(&settings.name, Type::TEXT)])
        .await?;
    let read = |row: &Row| {
        let text: &str = row.try_get(0)?;
        serde_json::from_str(text).map_err(|error| {
            Fault::Refused(format!(
                "the position in outbox.relay can't be read: {error}"
            ))
        })
    };
    rows.first().map(read).transpose()
}

/// Writes `position` to `outbox.relay`, and once a minute to `outbox.marks`; two round trips.
pub(crate) async fn acknowledge(
    client: &Client,
    settings: &CaptureSettings,
    position: &Position,
) -> Result<(), Fault> {
    let (origin, name) = (&position.origin, &settings.name);
    let json = serde_json::to_string(&position.place())
        .map_err(|error| Fault::Defect(error.to_string()))?;
    let timeline =
        i32::try_from(origin.timeline).map_err(|error| Fault::Defect(error.to_string()))?;
    let values: [Value; 7] = [
        (name, Type::TEXT),
        (&origin.table, Type::TEXT),
        (&origin.capture, Type::TEXT),
        (&origin.system_id, Type::TEXT),
        (&timeline, Type::INT4),
        (&json, Type::TEXT),
        (&settings.instance, Type::TEXT),
    ];
    let acknowledge = include_str!("../../sql/relay/acknowledge.sql");
    match client.query_typed(acknowledge, &values).await {
        Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
            return Err(served_by_another(&origin.table, name));
        }
        result => result?,
    };
    let mark = include_str!("../../sql/relay/mark.sql");
    let values: [Value; 2] = [(name, Type::TEXT), (&json, Type::TEXT)];
    client.query_typed(mark, &values).await?;
    Ok(())
}
