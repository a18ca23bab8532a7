//! What happens to servers and processes, and how it heals.

use std::time::Duration;

use outbox_relay::fault::Fault;
use outbox_relay::position::Mismatch;
use tokio::time::sleep;

use crate::mutations::Mutation;
use crate::process::Blow;
use crate::run::Fleet;
use crate::world::World;

/// After so many refusals a person gives up.
const ADOPTIONS_TRIED: usize = 20;

/// Lets the incidents of the scenario happen, until the time of chaos is over.
pub async fn happen(world: &World, fleet: &Fleet) {
    let scenario = world.scenario();
    let chaos = scenario.chaos.as_millis() as u64;
    for _ in 0..scenario.incidents {
        world.spawn(incident(
            world.clone(),
            fleet.clone(),
            world.time(0..=chaos),
        ));
    }
    if let Some(lacking) = scenario.promotion {
        let at = world.time(0..=chaos);
        world.spawn(promotion(world.clone(), fleet.clone(), at, lacking));
    }
    sleep(scenario.chaos).await;
}

/// A standby is promoted. Each relay refuses to go on, until a person has seen that nothing published is missing.
async fn promotion(world: World, fleet: Fleet, at: Duration, lacking: u64) {
    sleep(at).await;
    note(&world, "PostgreSQL: promotion");
    let mut server = world.postgres();
    server.promote(lacking as usize);
    server.up = true;
    drop(server);
    let mut ahead = false;
    for try_number in 0..ADOPTIONS_TRIED {
        world.pass(100..=1_000).await;
        let Err(fault) = fleet.adopt(try_number).await else {
            return note(&world, "position adopted");
        };
        world.tell(|| format!("not adopted: {fault}"));
        ahead |= matches!(fault, Fault::Position(Mismatch::Ahead(..)));
    }
    if ahead {
        note(&world, "position not adopted: the server went back");
        fleet.abandon();
    }
}

/// An operator has what is parked tried again, now and then.
pub async fn retry(world: World) {
    loop {
        world.pass(100..=2_000).await;
        if world.postgres().parked.retry_all() > 0 {
            note(&world, "parked: retry asked");
        }
    }
}

/// Published rows are deleted, by whichever mark.
pub async fn retain(world: World, mutation: Mutation) {
    loop {
        world.pass(20..=300).await;
        let marks = world.postgres().marks() as u64;
        if marks == 0 || !world.postgres().up {
            continue;
        }
        let mark = world.number(0..=marks - 1) as usize;
        if world.postgres().retain(mark, mutation) > 0 {
            note(&world, "retention: rows deleted");
        }
    }
}

fn note(world: &World, name: &'static str) {
    world.count(name);
    world.tell(|| name);
}

async fn incident(world: World, fleet: Fleet, at: Duration) {
    sleep(at).await;
    let scenario = world.scenario();
    let number = world.number(0..=scenario.relays - 1) as usize;
    let member = fleet.member(number);
    match (world.number(0..=13), member) {
        (0 | 1, _) => {
            if !world.postgres().up {
                return;
            }
            note(&world, "PostgreSQL: kill -9");
            world.postgres().crash();
            world.pass(1..=200).await;
            if !world.postgres().up {
                world.postgres().start();
            }
        }
        (2, _) => {
            note(&world, "Kafka: restart");
            world.kafka().up = false;
            world.pass(1..=400).await;
            let mut kafka = world.kafka();
            (kafka.up, kafka.life) = (true, kafka.life + 1);
        }
        (3 | 4, Some((process, _))) => {
            note(&world, "relay: kill -9");
            process.kill();
        }
        (5, Some((process, _))) => {
            note(&world, "relay: kill -9 at an await");
            process.strike_after_polls(world.number(0..=300), Blow::Kill);
        }
        (number @ 6..=11, Some((process, _))) => {
            let (blow, name) = match number {
                6..=8 => (Blow::Stop, "relay: SIGSTOP"),
                _ => (Blow::Suspend, "relay: its machine is suspended"),
            };
            note(&world, name);
            process.strike_after_polls(world.number(0..=30), blow);
            let lease = scenario.lease_time.as_millis() as u64;
            world.pass(lease / 2..=lease * 3).await;
            process.go_on();
            world.tell(|| format!("{} goes on", process.name()));
        }
        (12, Some((_, stop))) => {
            note(&world, "relay: SIGTERM");
            stop.cancel();
        }
        (13, Some((process, _))) => {
            note(&world, "relay: kill -9, and suspended as it opens");
            process.kill();
            suspended_as_it_opens(&world, &fleet, number).await;
        }
        _ => {}
    }
}

/// The next process of a relay sleeps between the proof of its lease and the epoch that it takes, while others may go on.
async fn suspended_as_it_opens(world: &World, fleet: &Fleet, number: usize) {
    loop {
        world.pass(1..=5).await;
        let member = fleet.member(number).filter(|_| !world.is_calm());
        let Some((process, _)) = member else {
            return;
        };
        if !process.is_stopped() {
            process.strike_at_opening(Blow::Suspend);
            continue;
        }
        let lease = world.scenario().lease_time.as_millis() as u64;
        world.pass(lease..=lease * 3).await;
        process.go_on();
        world.tell(|| format!("{} goes on", process.name()));
        return;
    }
}

/// Everything is up and running again.
pub fn heal(world: &World, fleet: &Fleet) {
    world.tell(|| "all faults heal");
    if !world.postgres().up {
        world.postgres().start();
    }
    let mut kafka = world.kafka();
    if !kafka.up {
        (kafka.up, kafka.life) = (true, kafka.life + 1);
    }
    drop(kafka);
    for process in fleet.members() {
        process.go_on();
    }
}
