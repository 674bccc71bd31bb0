// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sources: the reference driver against the daemon, which fires what a test signals at the other end of its eventfds.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::Signal as ProcessSignal;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use vhost_device_irq::host::sim::SimFunction;
use virtio_irq_proto::{
    Allocate, Delivery, Event, FunctionId, IrqType, Layout, PciIds, Source, SourceId, SourceRange, Status,
};
use virtio_irq_tests::{Daemon, PATIENCE, Served};
use virtio_irq_userspace::{Driver, DriverError, Options, Signal};

/// Long enough for what must not come.
const MOMENT: Duration = Duration::from_millis(20);

fn wanted(function: u16, irq_type: IrqType, least: u16, most: u16) -> Allocate {
    Allocate {
        function: FunctionId(function),
        irq_type,
        layout: Layout::Any,
        least: NonZeroU16::new(least).unwrap(),
        most: NonZeroU16::new(most).unwrap(),
        first: 0,
        delivery: Delivery::Event,
    }
}

fn range(first: u32, count: u16) -> SourceRange {
    SourceRange::new(first, count).unwrap()
}

fn ids(sources: &[Source]) -> Vec<u32> {
    sources.iter().map(|source| source.id.0).collect()
}

fn interrupt(function: u16, source: u32) -> Event {
    Event::Interrupt { function: FunctionId(function), source: SourceId(source) }
}

#[test]
fn each_source_fires_for_itself() {
    let daemon = Daemon::start(&["--device", "sim:wcn6855", "--device", "sim:igb,id=7"]);
    let mut driver = daemon.connect().unwrap();
    let block = Allocate { layout: Layout::Contiguous, first: 3, ..wanted(0, IrqType::Msi, 16, 16) };
    let first = driver.allocate(block).unwrap();
    let second = driver.allocate(wanted(7, IrqType::Msix, 1, 20)).unwrap();
    assert_eq!((first.len(), second.len()), (16, 10));
    assert_eq!((first[1].vector, first[1].message.data), (4, 4));
    let triggers = daemon.triggers();
    for source in [20, 3, 25, 15] {
        triggers.fire(SourceId(source));
        let function = if source < 16 { 0 } else { 7 };
        assert_eq!(driver.events(PATIENCE).unwrap(), [interrupt(function, source)]);
    }
    assert_eq!(driver.events(MOMENT).unwrap(), []);
}

#[test]
fn a_thousand_paced_interrupts_are_a_thousand_events() {
    let daemon = Daemon::start(&["--device", "sim:edu"]);
    let mut driver = daemon.connect().unwrap();
    driver.allocate(wanted(0, IrqType::Msi, 1, 1)).unwrap();
    let triggers = daemon.triggers();
    for _ in 0..1000 {
        triggers.fire(SourceId(0));
        assert_eq!(driver.events(PATIENCE).unwrap(), [interrupt(0, 0)]);
    }
    assert_eq!(driver.events(MOMENT).unwrap(), []);
}

#[test]
fn clients_hear_by_eventfd_or_callback() {
    let daemon = Daemon::start(&["--device", "sim:wcn6855"]);
    let mut driver = daemon.connect().unwrap();
    driver.allocate(wanted(0, IrqType::Msi, 3, 3)).unwrap();
    let eventfd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    driver.connect_signal(SourceId(0), Signal::Eventfd(eventfd.try_clone().unwrap())).unwrap();
    let called = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&called);
    let callback = Signal::Callback(Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    driver.connect_signal(SourceId(1), callback).unwrap();
    assert!(driver.connect_signal(SourceId(3), Signal::Callback(Box::new(|| ()))).is_err());
    let triggers = daemon.triggers();
    for source in [0, 1, 0, 2] {
        triggers.fire(SourceId(source));
        let waited = Timespec::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut [PollFd::new(&driver, PollFlags::IN)], Some(&waited)).unwrap(), 1);
        let expected: &[_] = if source == 2 { &[interrupt(0, 2)] } else { &[] };
        assert_eq!(driver.events(Duration::ZERO).unwrap(), expected);
    }
    let mut count = [0; 8];
    rustix::io::read(&eventfd, &mut count).unwrap();
    assert_eq!((u64::from_ne_bytes(count), called.load(Ordering::Relaxed)), (2, 1));
    // A freed source has no client: the next one of that id is told by `events` again.
    driver.free(range(0, 1)).unwrap();
    driver.allocate(wanted(0, IrqType::Msi, 1, 1)).unwrap();
    daemon.triggers().fire(SourceId(0));
    assert_eq!(driver.events(PATIENCE).unwrap(), [interrupt(0, 0)]);
}

#[test]
fn a_masked_source_is_told_once_after_unmask() {
    let daemon = Daemon::start(&["--device", "sim:wcn6855"]);
    let mut driver = daemon.connect().unwrap();
    driver.allocate(wanted(0, IrqType::Msi, 4, 4)).unwrap();
    let triggers = daemon.triggers();
    driver.mask(range(1, 2)).unwrap();
    (0..3).for_each(|_| triggers.fire(SourceId(2)));
    triggers.fire(SourceId(3));
    assert_eq!(driver.events(PATIENCE).unwrap(), [interrupt(0, 3)]);
    assert_eq!(driver.events(MOMENT).unwrap(), []);
    driver.unmask(range(1, 2)).unwrap();
    assert_eq!(driver.events(PATIENCE).unwrap(), [interrupt(0, 2)]);
    assert_eq!(driver.events(MOMENT).unwrap(), []);
}

#[test]
fn a_pin_fires_again_only_after_unmask() {
    let host = SimFunction::new("sim", PciIds::default(), 1, 0, 0);
    let served = Served::start(std::slice::from_ref(&host));
    let mut driver = served.connect().unwrap();
    driver.allocate(wanted(0, IrqType::Intx, 1, 1)).unwrap();
    assert!(host.fire(0));
    assert_eq!(driver.events(PATIENCE).unwrap(), [interrupt(0, 0)]);
    assert!(!host.fire(0), "the pin is masked");
    assert_eq!(driver.events(MOMENT).unwrap(), []);
    driver.unmask(range(0, 1)).unwrap();
    assert_eq!(driver.events(PATIENCE).unwrap(), [interrupt(0, 0)], "it was asserted meanwhile");
    host.fail(1);
    assert_eq!(driver.unmask(range(0, 1)).unwrap_err().status(), Some(Status::HostError));
    driver.unmask(range(0, 1)).unwrap();
    assert!(host.fire(0));
    assert_eq!(driver.events(PATIENCE).unwrap(), [interrupt(0, 0)]);
}

#[test]
fn a_freed_source_says_nothing_to_the_next_one_of_its_id() {
    let daemon = Daemon::start(&["--device", "sim:wcn6855"]);
    let mut driver = daemon.connect().unwrap();
    let vitals = {
        driver.functions().unwrap();
        daemon.vitals()
    };
    driver.allocate(wanted(0, IrqType::Msi, 2, 2)).unwrap();
    let former = daemon.triggers();
    // One that the driver has not looked at when it frees the source.
    former.fire(SourceId(1));
    while poll(&mut [PollFd::new(&driver, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 0 {
        std::thread::yield_now();
    }
    driver.free(range(1, 1)).unwrap();
    assert_eq!(ids(&driver.allocate(wanted(0, IrqType::Msi, 1, 1)).unwrap()), [1]);
    assert_eq!(driver.events(MOMENT).unwrap(), [], "the record was of the former source");
    former.fire(SourceId(1));
    assert_eq!(driver.events(MOMENT).unwrap(), []);
    daemon.triggers().fire(SourceId(1));
    assert_eq!(driver.events(PATIENCE).unwrap(), [interrupt(0, 1)]);
    driver.reset_function(FunctionId(0)).unwrap();
    assert_eq!(driver.sources().count(), 0);
    daemon.comes_back_to(vitals);
}

#[test]
fn two_thousand_sources_come_and_go_in_one_request_each() {
    // The soft limit of most systems.
    let daemon = Daemon::start_with_soft_limit(1024, &["--device", "sim:vectors=2048,type=msix"]);
    let mut driver = daemon.connect().unwrap();
    driver.functions().unwrap();
    let vitals = daemon.vitals();
    for _ in 0..3 {
        let sources = driver.allocate(wanted(0, IrqType::Msix, 2048, 2048)).unwrap();
        assert_eq!(ids(&sources), (0..2048).collect::<Vec<_>>());
        let triggers = daemon.triggers();
        (0..2048).for_each(|source| triggers.fire(SourceId(source)));
        let mut told = Vec::new();
        while told.len() < 2048 {
            let events = driver.events(PATIENCE).unwrap();
            assert!(!events.is_empty(), "only {} came", told.len());
            told.extend(events);
        }
        told.sort_unstable_by_key(|event| match event {
            Event::Interrupt { source, .. } => source.0,
            other => panic!("{other:?}"),
        });
        assert_eq!(told, (0..2048).map(|source| interrupt(0, source)).collect::<Vec<_>>());
        driver.free(range(0, 2048)).unwrap();
        daemon.comes_back_to(vitals);
    }
}

#[test]
fn what_the_host_takes_away_is_told_once_and_can_be_had_again() {
    let host = SimFunction::new("sim", PciIds::default(), 32, 0, 0);
    let served = Served::start(std::slice::from_ref(&host));
    let mut driver = served.connect().unwrap();
    driver.allocate(wanted(0, IrqType::Msi, 2, 2)).unwrap();
    host.take_away();
    // The device finds out when it looks.
    assert_eq!(ids(&driver.allocate(wanted(0, IrqType::Msi, 1, 1)).unwrap()), [2]);
    let mut told = driver.events(PATIENCE).unwrap();
    told.extend(driver.events(MOMENT).unwrap());
    let revoked = |source| Event::SourceRevoked { function: FunctionId(0), source: SourceId(source) };
    assert_eq!(told, [revoked(0), revoked(1)]);
    driver.free(range(0, 2)).unwrap();
    assert_eq!(ids(&driver.allocate(wanted(0, IrqType::Msi, 2, 2)).unwrap()), [0, 1]);
    assert!(host.fire(0) && host.fire(2));
    let mut told = driver.events(PATIENCE).unwrap();
    while told.len() < 2 {
        told.extend(driver.events(PATIENCE).unwrap());
    }
    assert_eq!(told, [interrupt(0, 2), interrupt(0, 1)], "vector 0 is source 2");
}

#[test]
fn a_function_that_is_gone_is_told_once_and_not_asked_for_again() {
    let hosts = [0, 1].map(|index| SimFunction::new("sim", PciIds::default(), 4, 0, index));
    let served = Served::start(&hosts);
    let mut driver = served.connect().unwrap();
    driver.allocate(wanted(1, IrqType::Msi, 3, 3)).unwrap();
    driver.allocate(wanted(0, IrqType::Msi, 1, 1)).unwrap();
    hosts[1].remove();
    let gone = driver.allocate(wanted(1, IrqType::Msi, 1, 1)).unwrap_err();
    assert_eq!(gone.status(), Some(Status::FunctionGone));
    assert_eq!(driver.events(PATIENCE).unwrap(), [Event::FunctionGone { function: FunctionId(1) }]);
    assert_eq!(driver.sources().collect::<Vec<_>>(), [(SourceId(3), FunctionId(0))]);
    assert!(matches!(driver.free(range(0, 1)), Err(DriverError::NotHeld(_))));
    let gone = driver.reset_function(FunctionId(1)).unwrap_err();
    assert_eq!(gone.status(), Some(Status::FunctionGone));
    assert_eq!(driver.events(MOMENT).unwrap(), []);
}

#[test]
fn an_id_of_a_function_that_is_gone_can_be_another_ones_before_that_is_told() {
    let hosts = [0, 1].map(|index| SimFunction::new("sim", PciIds::default(), 4, 0, index));
    let served = Served::start(&hosts);
    let mut driver = served.connect().unwrap();
    driver.allocate(wanted(1, IrqType::Msi, 3, 3)).unwrap();
    hosts[1].remove();
    driver.allocate(wanted(1, IrqType::Msi, 1, 1)).unwrap_err();
    // FUNCTION_GONE is in a buffer that the driver has not looked at.
    assert_eq!(ids(&driver.allocate(wanted(0, IrqType::Msi, 2, 2)).unwrap()), [0, 1]);
    assert!(hosts[0].fire(1));
    let mut told = driver.events(PATIENCE).unwrap();
    while told.len() < 2 {
        told.extend(driver.events(PATIENCE).unwrap());
    }
    assert_eq!(told, [Event::FunctionGone { function: FunctionId(1) }, interrupt(0, 1)]);
    assert_eq!(driver.events(MOMENT).unwrap(), []);
    driver.free(range(0, 2)).unwrap();
    assert_eq!(hosts[0].attached(), [0; 0]);
}

#[test]
fn what_a_late_reply_gives_is_given_back() {
    let daemon = Daemon::start(&["--device", "sim:wcn6855"]);
    // Long enough for a daemon that is only slow.
    let options = Options { timeout: Duration::from_secs(2), ..Options::default() };
    let mut driver = Driver::connect(daemon.socket(), options).unwrap();
    driver.functions().unwrap();
    let vitals = daemon.vitals();
    daemon.signal(ProcessSignal::STOP);
    let late = driver.allocate(wanted(0, IrqType::Msi, 5, 5));
    assert!(matches!(late, Err(DriverError::Timeout(_))), "{late:?}");
    let later = driver.allocate(wanted(0, IrqType::Msi, 1, 1));
    assert!(matches!(later, Err(DriverError::Timeout(_))), "the first one is not settled: {later:?}");
    daemon.signal(ProcessSignal::CONT);
    let sources = loop {
        match driver.allocate(wanted(0, IrqType::Msi, 32, 32)) {
            Err(DriverError::Timeout(_)) => {}
            other => break other.unwrap(),
        }
    };
    assert_eq!(ids(&sources), (0..32).collect::<Vec<_>>(), "nothing is left of the late one");

    // A source whose FREE was not answered in time says nothing, and is not given out twice.
    daemon.signal(ProcessSignal::STOP);
    assert!(matches!(driver.free(range(0, 31)), Err(DriverError::Timeout(_))));
    assert!(matches!(driver.free(range(0, 31)), Err(DriverError::NotHeld(_))));
    daemon.signal(ProcessSignal::CONT);
    let sources = loop {
        match driver.allocate(wanted(0, IrqType::Msi, 1, 1)) {
            Err(DriverError::Timeout(_)) => {}
            other => break other.unwrap(),
        }
    };
    assert_eq!(ids(&sources), [0]);
    driver.reset_function(FunctionId(0)).unwrap();
    daemon.comes_back_to(vitals);
}

#[test]
fn a_reset_frees_every_source() {
    let daemon = Daemon::start(&["--device", "sim:igb", "--device", "sim:wcn7850"]);
    let mut driver = daemon.connect().unwrap();
    driver.functions().unwrap();
    let vitals = daemon.vitals();
    for _ in 0..10 {
        driver.allocate(wanted(0, IrqType::Msix, 1, 4)).unwrap();
        driver.allocate(wanted(1, IrqType::Msi, 1, 4)).unwrap();
        driver.free(range(2, 3)).unwrap();
        assert_eq!(driver.sources().count(), 5);
        driver.reset().unwrap();
        assert_eq!(driver.sources().count(), 0);
        driver.functions().unwrap();
        daemon.comes_back_to(vitals);
    }
}

#[test]
fn without_the_feature_there_are_no_sources() {
    let daemon = Daemon::start(&["--device", "sim:edu", "--max-sources", "0"]);
    let mut driver = daemon.connect().unwrap();
    assert_eq!(driver.max_sources(), 0);
    let refused = driver.allocate(wanted(0, IrqType::Msi, 1, 1));
    assert!(matches!(refused, Err(DriverError::Feature("VIRTIO_IRQ_F_EVENT"))), "{refused:?}");
}
