//! `verify`: compares the retained rows of the outbox table with the topics of a live system, and changes nothing.
//!
//! It works beside a running relay without false alarms, because it looks in this order:
//!
//! 1. **The positions**, first of all. What the last one covers is published: such a row must be in Kafka. Other rows may
//!    be, because the relay goes on; of them only repetition, order and place are judged.
//! 2. **The table**, in one snapshot. A row that was committed later is not in it. Its record is recognised by its
//!    transaction, which this snapshot does not see.
//! 3. **The ends of the topics**, once they have passed all that the last position claims. A record behind is not read.
//! 4. **What became of the transactions** of records without a row, asked when the records were read already. Rolled back
//!    or not committed: a phantom. Committed and all of its rows retained, but not this one: a phantom. Committed and rows
//!    missing: deleted from the table, which is everybody's right, so not judged. Forgotten by PostgreSQL: not judged.
//! 5. **The log start offsets**, last, so that they count as deleted what was deleted meanwhile.
//!
//! What can't be judged is counted. Loss is judged above the log start offsets and in topics that are not compacted. A
//! missing record names no partition, so it must be published later than the first retained record of *each* partition of
//! its topic that lost its beginning. Order between transactions is judged as finely as positions are known: for each
//! Kafka transaction while the position topic keeps its records (an hour), then by the minute (`outbox.marks`).

mod history;
mod progress;
mod retained;
mod strangers;

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::{Duration, Instant};

use crate::capture::table::{origin, shape};
use crate::config::{Settings, SinkKind};
use crate::fault::Fault;
use crate::ledger::{Check, PositionRecord, Report};
use crate::outcome::{self, grouped};
use crate::park::people::set_aside;
use crate::scan::{self, Brokers, Extents, Scan, offsets_of};
use crate::sink::kafka::position_topic::topic_of;
use crate::sink::kafka::record::REPLAY;
use history::History;
use progress::Progress;
use retained::Retained;
use strangers::{Stranger, Strangers};

/// What was found.
#[derive(Debug, Serialize)]
pub struct Findings {
    /// Whether nothing is wrong, as far as it can be judged.
    pub clean: bool,
    /// Name of the relay.
    pub relay: String,
    /// The outbox table.
    pub table: String,
    /// The topics that were read.
    pub topics: Vec<String>,
    /// The violations, and the rows that can't be judged.
    #[serde(flatten)]
    pub report: Report,
    /// The records that can't be judged, and rows.
    pub records_unjudged: Unjudged,
}

/// What was seen and is not judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Unjudged {
    /// Records whose rows are not in the table any more.
    pub rows_gone: u64,
    /// Records of transactions that committed after the table was read.
    pub committed_meanwhile: u64,
    /// Records of other producers, or of another cluster.
    pub of_others: u64,
    /// Records that were published again on purpose.
    pub replayed: u64,
    /// Rows whose id another row has.
    pub rows_of_one_id: u64,
}

/// Compares the table with the topics.
///
/// # Errors
/// When a server does not answer, the relay has no position, or the position does not belong to this database.
pub async fn verify(settings: &Settings) -> Result<Findings, Fault> {
    if settings.sink != SinkKind::Kafka {
        return Err(Fault::Setting(
            "verify needs sink kafka: no other sink keeps what was published".into(),
        ));
    }
    let progress = Progress::new();
    let positions = positions(settings).await?;
    let client = settings.database.connect().await?;
    let last = positions.last().ok_or_else(|| {
        let name = &settings.name;
        Fault::Refused(format!(
            "relay {name} has no position in this Kafka, so there is nothing to verify"
        ))
    })?;
    // Whichever capture made the positions, what they cover can be told.
    let capture = &last.position.origin.capture;
    let (here, next_xid) = origin(&client, &settings.outbox.table, capture).await?;
    here.accepts(&last.position, next_xid)?;
    let marks = history::marks(&client, &settings.name).await?;
    let history = History::new(&marks, &positions);
    let (table, shape) = shape(&client, &settings.outbox).await?;
    progress.say(&format!("reading the rows of {table}"));
    let set_aside = set_aside(&client, &settings.name, &last.position.unsettled).await?;
    let route = &settings.outbox.route;
    let retained = retained::read(&client, &shape, route, &history, &set_aside).await?;
    let topics: Vec<String> = retained
        .ledger
        .topics()
        .into_iter()
        .map(str::to_owned)
        .collect();
    let compacted = compacted(settings, &topics).await?;
    let work = Work {
        scan: Scan::of(Brokers::from(&settings.kafka))?,
        system_id: here.system_id,
        client: Arc::new(client),
        patience: Duration::from_millis(settings.kafka.transaction_timeout_ms.into()),
        positions,
        topics,
        compacted,
        retained,
        progress,
    };
    let (topics, report, records_unjudged) = spawn_blocking(move || work.judge())
        .await
        .map_err(|error| Fault::Defect(format!("the scan ended: {error}")))??;
    Ok(Findings {
        clean: report.is_clean(),
        relay: settings.name.clone(),
        table,
        topics,
        report,
        records_unjudged,
    })
}

/// The records of the position topic.
async fn positions(settings: &Settings) -> Result<Vec<PositionRecord>, Fault> {
    let (brokers, topic) = (Brokers::from(&settings.kafka), topic_of(&settings.name));
    let read = move || {
        let mut positions = Vec::new();
        let scan = Scan::of(brokers)?;
        // Only what is visible now: a relay that died leaves its transaction open until another comes or it times out.
        let extents = scan.extents(&topic)?;
        scan.read(
            &topic,
            &extents,
            |_| (),
            |message| {
                positions.push(scan::position(message)?);
                Ok(())
            },
        )?;
        Ok(positions)
    };
    spawn_blocking(read)
        .await
        .map_err(|error| Fault::Defect(format!("the scan ended: {error}")))?
}

/// The topics of these that are compacted, and those that don't say.
async fn compacted(settings: &Settings, topics: &[String]) -> Result<Vec<String>, Fault> {
    let config = settings.kafka.client_config();
    let admin: AdminClient<DefaultClientContext> =
        config.create().map_err(|error| scan::away(&error))?;
    let wanted: Vec<_> = topics
        .iter()
        .map(|topic| ResourceSpecifier::Topic(topic))
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let answers = admin
        .describe_configs(&wanted, &AdminOptions::new())
        .await
        .map_err(|error| scan::away(&error))?;
    let compacts = |(topic, answer): (&String, _)| match answer {
        Ok::<rdkafka::admin::ConfigResource, RDKafkaErrorCode>(resource) => resource
            .get("cleanup.policy")
            .and_then(|entry| entry.value.as_ref())
            .is_none_or(|policy| policy.contains("compact"))
            .then(|| topic.clone()),
        Err(RDKafkaErrorCode::UnknownTopicOrPartition) => None,
        Err(code) => {
            tracing::warn!(
                "loss can't be judged in topic {topic}, because its cleanup.policy can't be read: {code}"
            );
            Some(topic.clone())
        }
    };
    Ok(topics.iter().zip(answers).filter_map(compacts).collect())
}

/// The blocking part, with all that it needs.
struct Work {
    scan: Scan,
    system_id: String,
    client: Arc<tokio_postgres::Client>,
    patience: Duration,
    positions: Vec<PositionRecord>,
    topics: Vec<String>,
    compacted: Vec<String>,
    retained: Retained,
    progress: Progress,
}

impl Work {
    fn judge(self) -> Result<(Vec<String>, Report, Unjudged), Fault> {
        let mut check = self.retained.ledger.check();
        self.positions
            .iter()
            .for_each(|position| _ = check.position(position));
        let mut unjudged = Unjudged {
            rows_of_one_id: self.retained.rows_of_one_id,
            ..Unjudged::default()
        };
        let extents = self.ends()?;
        self.progress.expect(extents.values().map(offsets_of).sum());
        for (topic, extents) in &extents {
            let mut strangers = Strangers::default();
            self.scan.read(
                topic,
                extents,
                |offsets| self.progress.further(offsets),
                |message| {
                    self.feed(message, &mut check, &mut strangers, &mut unjudged);
                    if strangers.are_enough() {
                        self.settle(&mut strangers, &mut check, &mut unjudged)?;
                    }
                    Ok(())
                },
            )?;
            self.settle(&mut strangers, &mut check, &mut unjudged)?;
        }
        for topic in &self.topics {
            for (partition, extent) in self.scan.extents(topic)? {
                check.log_start(topic, partition, extent.first);
            }
        }
        self.compacted
            .iter()
            .for_each(|topic| _ = check.compacted(topic));
        self.progress.done();
        Ok((self.topics, check.finish(), unjudged))
    }

    /// Where the topics end, when all that the last position claims is visible. Kafka shows the records of one transaction
    /// partition by partition; those of earlier ones are all visible when it has begun the last.
    fn ends(&self) -> Result<BTreeMap<&str, Extents>, Fault> {
        let until = Instant::now() + self.patience;
        let mut ends = BTreeMap::new();
        for topic in &self.topics {
            let mut extents = self.scan.extents(topic)?;
            while self.is_short(topic, &extents)? && Instant::now() < until {
                scan::pause(scan::LOOK_EVERY);
                extents = self.scan.extents(topic)?;
            }
            ends.insert(topic.as_str(), extents);
        }
        Ok(ends)
    }

    /// Whether a partition does not show all that the last position claims, and will. If nothing is open in it, it never
    /// will, because the topic was made anew: then the check says what is missing.
    fn is_short(&self, topic: &str, extents: &Extents) -> Result<bool, Fault> {
        let claimed = self.positions.iter().rev().take(1);
        for range in claimed.flat_map(|last| &last.partitions) {
            let end = extents.get(&range.partition).map(|extent| extent.end);
            let short = end.filter(|end| range.topic == topic && *end <= range.last_offset);
            if let Some(end) = short
                && self.scan.goes_on(topic, range.partition, end)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn feed(
        &self,
        message: &BorrowedMessage<'_>,
        check: &mut Check<'_>,
        strangers: &mut Strangers,
        unjudged: &mut Unjudged,
    ) {
        let seen = scan::seen(message);
        if scan::header(message, REPLAY).is_some() {
            unjudged.replayed += 1;
        } else if self.retained.ledger.holds(&seen.id) {
            check.record(seen);
        } else {
            check.stranger(seen.topic, seen.partition, seen.offset);
            match Stranger::of(&seen, &self.system_id) {
                Some(stranger) => strangers.add(stranger),
                None => unjudged.of_others += 1,
            }
        }
    }

    fn settle(
        &self,
        strangers: &mut Strangers,
        check: &mut Check<'_>,
        unjudged: &mut Unjudged,
    ) -> Result<(), Fault> {
        let settling = strangers.settle(&self.client, &self.retained, check, unjudged);
        Handle::current().block_on(settling)
    }
}

impl Findings {
    /// The table of violations, what was not judged, and the offenders. Ends without a line break.
    #[must_use]
    pub fn text(&self) -> String {
        let (rows, records) = (&self.report.unjudged, &self.records_unjudged);
        let mut text = outcome::table(&self.report, None, false);
        let unjudged = [
            (
                rows.not_yet_published,
                "rows not seen, beyond the relay's position or from before its first start",
            ),
            (
                rows.perhaps_below_log_start,
                "rows not seen, perhaps below the log start offset of their partition",
            ),
            (rows.perhaps_compacted, "rows not seen in compacted topics"),
            (records.rows_of_one_id, "rows whose id another row has"),
            (
                records.rows_gone,
                "records whose rows are not in the table any more",
            ),
            (
                records.committed_meanwhile,
                "records of transactions that committed after the table was read",
            ),
            (records.of_others, "records of other producers"),
            (records.replayed, "replayed records"),
        ];
        for (count, what) in unjudged.iter().filter(|(count, _)| *count > 0) {
            text += &format!("\nnot judged: {} {what}", grouped(*count));
        }
        if self.report.events == 0 {
            text += "\nthe table holds no rows, so there was nothing to compare";
        }
        if !self.clean {
            text += &format!("\n{}", outcome::offenders(&self.report, false));
        }
        text
    }
}
