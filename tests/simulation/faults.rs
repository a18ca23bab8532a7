//! What happens to servers and processes, and how it heals.

use std::time::Duration;

use tokio::time::sleep;

use crate::run::Fleet;
use crate::world::World;

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
    sleep(scenario.chaos).await;
    if scenario.promotion {
        note(world, "PostgreSQL: promotion");
        world.postgres().promote();
    }
}

fn note(world: &World, name: &'static str) {
    world.count(name);
    world.tell(|| name);
}

async fn incident(world: World, fleet: Fleet, at: Duration) {
    sleep(at).await;
    let scenario = world.scenario();
    let member = fleet.member(world.number(0..=scenario.relays - 1) as usize);
    match (world.number(0..=9), member) {
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
            process.kill_after_polls(world.number(0..=300));
        }
        (6..=8, Some((process, _))) => {
            note(&world, "relay: SIGSTOP");
            let lease = scenario.lease_time.as_millis() as u64;
            process.stop();
            world.pass(lease / 2..=lease * 3).await;
            process.go_on();
            world.tell(|| format!("{} goes on", process.name()));
        }
        (9, Some((_, stop))) => {
            note(&world, "relay: SIGTERM");
            stop.cancel();
        }
        _ => {}
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
