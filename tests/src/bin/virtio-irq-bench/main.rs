// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Measures what the device costs. `cargo xtask bench` builds this and the daemon for release, runs it and keeps the
//! results.
//!
//! Arguments name the parts to measure; without any it is all of them.
#![allow(clippy::expect_used, reason = "a benchmark: where a step fails there is nothing to measure")]

mod control;
mod cores;
mod floor;
mod host;
mod idle;
mod machine;
mod plain;
mod profile;
mod round_trip;
mod sources;
mod stats;

use serde_json::{Map, Value};
use virtio_irq_tests::Daemon;
use virtio_irq_tests::program::Profile;
use virtio_irq_tests::vitals::resident_kib;

/// The subcommand of the process at the other end of the floor.
const ECHO: &str = "echo";

fn main() {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    if parts.first().is_some_and(|first| first == ECHO) {
        floor::echo();
        return;
    }
    let mut results = Map::new();
    let mut part = |name: &str, about: &str, measure: &mut dyn FnMut() -> Value| {
        if parts.is_empty() || parts.iter().any(|part| part == name) {
            eprintln!("{about} ...");
            results.insert(name.to_owned(), measure());
        }
    };
    let daemon = cores::together(|| Daemon::start_built(Profile::Release, &["--device", "sim:wcn6855"]));
    let fresh_kib = resident_kib(daemon.id()).expect("the daemon is alive");
    let mut driver = daemon.connect().expect("the daemon serves");
    part("machine", "the machine", &mut machine::describe);
    let trips = format!("round trips between two processes, {} of each kind", round_trip::COUNT);
    part("round_trip", &trips, &mut || cores::together(|| round_trip::measure(&mut driver)));
    part("host", "reading the host", &mut host::measure);
    part("rates", "interrupts as fast as they can come", &mut sources::rates);
    part("allocations", "allocating sources", &mut sources::allocations);
    part("storms", "storms", &mut sources::storms);
    let clients = format!("{} clients of the control socket", control::CLIENTS);
    part("control", &clients, &mut control::measure);
    let span = format!("an idle guest, {} s", idle::SPAN.as_secs());
    part("idle", &span, &mut || idle::measure(daemon.id(), fresh_kib));
    println!("{:#}", Value::Object(results));
}
