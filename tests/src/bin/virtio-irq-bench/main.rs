// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Measures what the device costs. `cargo xtask bench` builds this and the daemon for release, runs it and keeps the
//! results.
#![allow(clippy::expect_used, reason = "a benchmark: where a step fails there is nothing to measure")]

mod floor;
mod host;
mod idle;
mod machine;
mod stats;

use floor::{Floor, Wait};
use serde_json::json;
use std::num::NonZeroU16;
use std::time::Instant;
use virtio_irq_proto::{FunctionId, IrqType, VectorRange};
use virtio_irq_tests::Daemon;
use virtio_irq_tests::program::Profile;
use virtio_irq_userspace::Driver;

/// The subcommand of the process at the other end of the floor.
const ECHO: &str = "echo";
/// Rounds of each kind, in turns: what disturbs one kind disturbs the others.
const ROUNDS: usize = 200;
/// Round trips of each kind in a round.
const TRIPS: usize = 250;

fn main() {
    if std::env::args().nth(1).as_deref() == Some(ECHO) {
        floor::echo();
        return;
    }
    let daemon = Daemon::start_built(Profile::Release, &["--device", "sim:wcn6855"]);
    let fresh_kib = virtio_irq_tests::vitals::resident_kib(daemon.id()).expect("the daemon is alive");
    let mut driver = daemon.connect().expect("the daemon serves");
    eprintln!("round trips between two processes, {} of each kind ...", ROUNDS * TRIPS);
    let round_trip = round_trips(&mut driver);
    eprintln!("reading the host ...");
    let host = host::measure();
    eprintln!("an idle guest, {} s ...", idle::SPAN.as_secs());
    let idle = idle::measure(daemon.id(), fresh_kib);
    let results = json!({
        "machine": machine::describe(),
        "round_trip": round_trip,
        "host": host,
        "idle": idle,
    });
    println!("{results:#}");
}

fn round_trips(driver: &mut Driver) -> serde_json::Value {
    let mut floor = Floor::start(Wait::Read);
    let mut waiting = Floor::start(Wait::Epoll);
    let (mut bare, mut epoll, mut one, mut block) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        // The first round warms up.
        let keep = round > 0;
        repeat(&mut bare, keep, || floor.trip());
        repeat(&mut epoll, keep, || waiting.trip());
        repeat(&mut one, keep, || ask(driver, 1));
        repeat(&mut block, keep, || ask(driver, 32));
    }
    let row = |times: &[u64]| {
        let mut row = stats::summary(times);
        row["times_floor"] = json!(stats::median(times) as f64 / stats::median(&bare) as f64);
        row["times_epoll_floor"] = json!(stats::median(times) as f64 / stats::median(&epoll) as f64);
        row
    };
    json!({
        "eventfd_read": row(&bare),
        "eventfd_epoll": row(&epoll),
        "get_messages_1": row(&one),
        "get_messages_32": row(&block),
    })
}

fn ask(driver: &mut Driver, count: u16) {
    let count = NonZeroU16::new(count).expect("a count that is not 0");
    let vectors = VectorRange { irq_type: IrqType::Msi, first: 0, count };
    let messages = driver.messages(FunctionId(0), vectors).expect("the daemon answers");
    assert_eq!(messages.len(), vectors.len());
}

/// Times each of [`TRIPS`] calls, in nanoseconds.
fn repeat(times: &mut Vec<u64>, keep: bool, mut trip: impl FnMut()) {
    for _ in 0..TRIPS {
        let start = Instant::now();
        trip();
        let time = start.elapsed();
        if keep {
            times.push(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
    }
}
