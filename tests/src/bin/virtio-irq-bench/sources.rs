// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What sources cost: to allocate, to deliver as many interrupts as one core can, and to bear a storm.

use crate::cores;
use crate::plain::Plain;
use crate::stats;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use serde_json::{Value, json};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};
use virtio_irq_proto::{
    Allocate, Delivery, FunctionId, IrqType, Layout, SourceId, SourceRange, SourceRequest,
};
use virtio_irq_tests::program::Profile;
use virtio_irq_tests::vitals::cpu_time;
use virtio_irq_tests::{Daemon, Triggers};
use zerocopy::IntoBytes;

/// Numbers of sources: one, as many as a card has, and as many as PCI allows.
const COUNTS: [u16; 3] = [1, 64, 2048];
/// How often each number is allocated and freed.
const ALLOCATIONS: usize = 200;
/// For how long each number fires.
const SPAN: Duration = Duration::from_secs(2);
/// The storm that is held back: interrupts in a second.
const LIMIT: u32 = 1000;

/// A daemon with sources and their guest, and what lets them fire.
pub(crate) struct Firing {
    pub(crate) guest: Plain,
    pub(crate) triggers: Triggers,
    pub(crate) daemon: Daemon,
    count: u16,
}

impl Firing {
    /// A daemon with these further arguments, and as many sources.
    pub(crate) fn start(arguments: &[&str], count: u16) -> Self {
        let daemon = daemon(arguments);
        let mut guest = Plain::boot(&daemon);
        allocate(&mut guest, count);
        let triggers = daemon.triggers();
        assert_eq!(triggers.count(), usize::from(count));
        Self { guest, triggers, daemon, count }
    }

    /// Lets all sources fire in turns, as fast as this process can, and takes their events. How many there were of
    /// each, and what they cost the daemon.
    fn storm(&mut self) -> Value {
        let cpu = || cpu_time(self.daemon.id()).expect("the daemon is alive");
        let (start, before) = (Instant::now(), cpu());
        let (mut fired, mut delivered) = (0_u64, 0_u64);
        while start.elapsed() < SPAN {
            for source in 0..self.count {
                self.triggers.fire(SourceId(u32::from(source)));
                delivered += self.guest.take_events() as u64;
            }
            fired += u64::from(self.count);
        }
        let (span, cpu) = (start.elapsed().as_secs_f64(), cpu().saturating_sub(before).as_secs_f64());
        json!({
            "sources": self.count,
            "fired_per_second": fired as f64 / span,
            "delivered_per_second": delivered as f64 / span,
            "cpu_share": cpu / span,
            "delivered_per_cpu_second": delivered as f64 / cpu,
        })
    }
}

/// Interrupts as fast as they can come.
pub(crate) fn rates() -> Value {
    cores::apart(|place| COUNTS.map(|count| place.other(|| Firing::start(&[], count)).storm()).into())
}

/// What one source costs that fires all the time, with and without a limit.
pub(crate) fn storms() -> Value {
    let limit = LIMIT.to_string();
    cores::apart(|place| {
        let storm = |arguments: &[&str]| place.other(|| Firing::start(arguments, 1)).storm();
        json!({
            "limit": LIMIT,
            "unlimited": storm(&[]),
            "limited": storm(&["--source-rate-limit", &limit]),
        })
    })
}

/// Allocates and frees sources, each number with one request.
///
/// One number after the other: what the kernel leaves for later when thousands of descriptors are closed would be counted
/// for the single one that is opened next. And both processes on one core, as for the round trips.
pub(crate) fn allocations() -> Value {
    cores::together(|| {
        let daemon = daemon(&[]);
        let mut guest = Plain::boot(&daemon);
        COUNTS.map(|count| allocation(&mut guest, count)).into()
    })
}

fn allocation(guest: &mut Plain, count: u16) -> Value {
    let [mut allocating, mut freeing, mut kernel] = [const { Vec::new() }; 3];
    for round in 0..=ALLOCATIONS {
        let start = Instant::now();
        allocate(guest, count);
        let allocated = start.elapsed();
        let start = Instant::now();
        free(guest, count);
        let freed = start.elapsed();
        let floor = eventfds(count);
        // The first round warms up.
        if round > 0 {
            for (times, time) in [(&mut allocating, allocated), (&mut freeing, freed), (&mut kernel, floor)] {
                times.push(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            }
        }
    }
    json!({
        "sources": count,
        "allocate": stats::summary(&allocating),
        "free": stats::summary(&freeing),
        "eventfds": stats::summary(&kernel),
    })
}

/// What the kernel takes to make as many eventfds and to watch them, each with a second descriptor for the host: the
/// least that an allocation does.
fn eventfds(count: u16) -> Duration {
    let start = Instant::now();
    let watch = epoll::create(CreateFlags::CLOEXEC).expect("an epoll instance can be made");
    let eventfds: Vec<_> = (0..u64::from(count))
        .map(|number| {
            let eventfd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("an eventfd");
            let flags = EventFlags::IN | EventFlags::ET;
            epoll::add(&watch, &eventfd, EventData::new_u64(number), flags).expect("it can be watched");
            let copy = eventfd.try_clone().expect("it can be duplicated");
            (eventfd, copy)
        })
        .collect();
    let time = start.elapsed();
    drop(eventfds);
    time
}

fn daemon(arguments: &[&str]) -> Daemon {
    let device = ["--device", "sim:vectors=2048,type=msix"];
    Daemon::start_built(Profile::Release, &[&device, arguments].concat())
}

fn allocate(guest: &mut Plain, count: u16) {
    let count = NonZeroU16::new(count).expect("a count that is not 0");
    let request = Allocate {
        function: FunctionId(0),
        irq_type: IrqType::Msix,
        layout: Layout::Any,
        least: count,
        most: count,
        first: 0,
        delivery: Delivery::Event,
    };
    guest.prepare(request.to_wire().as_bytes(), request.reply_size());
    assert_eq!(guest.ask(), request.reply_size(), "the daemon allocates");
}

fn free(guest: &mut Plain, count: u16) {
    let sources = SourceRange::new(0, count).expect("a count that is not 0");
    guest.prepare(SourceRequest::Free.to_wire(sources).as_bytes(), 8);
    assert_eq!(guest.ask(), 8);
    assert!(guest.is_ok(), "the daemon frees");
}
