// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What goes from one process to the other and back: get-messages, and an interrupt on its way from the host to the
//! guest. Beside them the floors, in turns: what disturbs one kind disturbs the others.

use crate::floor::{Floor, Wait};
use crate::plain::Plain;
use crate::{profile, sources, stats};
use serde_json::{Value, json};
use std::num::NonZeroU16;
use std::time::Instant;
use virtio_irq_proto::{FunctionId, GetMessages, IrqType, SourceId, VectorRange};
use virtio_irq_tests::Daemon;
use virtio_irq_tests::program::Profile;
use virtio_irq_userspace::Driver;
use zerocopy::IntoBytes;

/// Rounds of each kind.
const ROUNDS: usize = 200;
/// Round trips of each kind in a round.
const TRIPS: usize = 250;
/// Round trips of each kind in all.
pub(crate) const COUNT: usize = ROUNDS * TRIPS;

/// Round trips of each kind while the daemon is looked at.
const PROFILED: u32 = 100_000;

/// `driver` is the reference driver, with a function of 32 MSI vectors.
pub(crate) fn measure(driver: &mut Driver) -> Value {
    let mut floor = Floor::start(Wait::Read);
    let mut waiting = Floor::start(Wait::Epoll);
    let firing = sources::Firing::start(&[], 1);
    let mut listener = firing.guest;
    let daemon = Daemon::start_built(Profile::Release, &["--device", "sim:wcn6855"]);
    let mut plain = Plain::boot(&daemon);
    let request = GetMessages { function: FunctionId(0), vectors: vectors(1) };
    plain.prepare(request.to_wire().as_bytes(), request.reply_size());

    let names = [
        "eventfd_read",
        "eventfd_epoll",
        "interrupt",
        "get_messages_plain",
        "get_messages_1",
        "get_messages_32",
    ];
    let mut kinds = names.map(|name| (name, Vec::with_capacity(COUNT)));
    for round in 0..=ROUNDS {
        let [bare, epoll, interrupt, messages, one, block] = &mut kinds;
        // The first round warms up.
        let keep = round > 0;
        repeat(&mut bare.1, keep, || floor.trip());
        repeat(&mut epoll.1, keep, || waiting.trip());
        // What the guest does after the call is not part of it.
        let mut events = 0;
        repeat_with(
            &mut interrupt.1,
            keep,
            &mut listener,
            |listener| {
                firing.triggers.fire(SourceId(0));
                listener.sleep();
            },
            |listener| events += listener.take_events(),
        );
        assert_eq!(events, TRIPS, "each interrupt is one event");
        repeat(&mut messages.1, keep, || assert_eq!(plain.ask(), request.reply_size()));
        repeat(&mut one.1, keep, || ask(driver, 1));
        repeat(&mut block.1, keep, || ask(driver, 32));
    }
    assert!(plain.is_ok(), "the daemon answers");
    let profiles = json!({
        "interrupt": profile::measure(firing.daemon.id(), PROFILED, || {
            firing.triggers.fire(SourceId(0));
            listener.sleep();
            listener.take_events();
        }),
        "get_messages": profile::measure(daemon.id(), PROFILED, || {
            plain.ask();
        }),
    });
    let [read, epoll] = [&kinds[0].1, &kinds[1].1].map(|times| stats::median(times) as f64);
    let row = |times: &[u64]| {
        let mut row = stats::summary(times);
        let median = stats::median(times) as f64;
        row["times_floor"] = json!(median / read);
        row["times_epoll_floor"] = json!(median / epoll);
        row
    };
    let mut results: Value = kinds.iter().map(|(name, times)| (*name, row(times))).collect();
    results["daemon"] = profiles;
    results
}

fn ask(driver: &mut Driver, count: u16) {
    let vectors = vectors(count);
    let messages = driver.messages(FunctionId(0), vectors).expect("the daemon answers");
    assert_eq!(messages.len(), vectors.len());
}

fn vectors(count: u16) -> VectorRange {
    let count = NonZeroU16::new(count).expect("a count that is not 0");
    VectorRange { irq_type: IrqType::Msi, first: 0, count }
}

/// Times each of [`TRIPS`] calls, in nanoseconds.
fn repeat(times: &mut Vec<u64>, keep: bool, mut trip: impl FnMut()) {
    repeat_with(times, keep, &mut (), |()| trip(), |()| ());
}

/// [`repeat`], with something after each call that is not timed.
fn repeat_with<C>(
    times: &mut Vec<u64>,
    keep: bool,
    with: &mut C,
    mut trip: impl FnMut(&mut C),
    mut after: impl FnMut(&mut C),
) {
    for _ in 0..TRIPS {
        let start = Instant::now();
        trip(with);
        let time = start.elapsed();
        after(with);
        if keep {
            times.push(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
    }
}
