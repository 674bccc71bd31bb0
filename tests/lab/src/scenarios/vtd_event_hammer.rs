// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Drivers that allocate, mask, unmask and free all at once while interrupts pour in, and while the virtio-irq device is taken from its
//! driver and given back, again and again, and unplugged. The guest's kernel stays well, and afterwards everything works as
//! it did before.

use super::daemon::Daemon;
use super::functions::{IGB, XHCI, guest_with};
use super::igb::{self, Igb};
use super::kernels::{Driver, VIRTIO_IRQ, guest_is_well, host_is_well, start_guest};
use super::vectors::{self, Vectors, becoming, raise_each};
use super::{Common, Sabotage, Scenario, Stand};
use crate::agent::Agent;
use crate::checks::{Unmet, expect};
use crate::error::{Error, Result};
use crate::host::{Host, RunningGuest};
use crate::iommu::Iommu;
use nix::libc::{EALREADY, EBUSY, ENODEV, ENOENT, ENOSPC};
use std::fmt;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The guest's modules, in the order in which they are loaded.
const MODULES: &[&str] = &[VIRTIO_IRQ, vectors::MODULE];

/// How often each driver goes round.
const ROUNDS: usize = 40;

/// Allocations that are given between two times that the device is taken from its driver, so that most are.
const BETWEEN: usize = 12;

/// What a driver hears when another was quicker, or the device is away.
const ORDINARY: &[i32] = &[EALREADY, EBUSY, ENODEV, ENOENT, ENOSPC];

const HAMMER: &str = "works-after-the-hammer";
const UNBOUND: &str = "works-after-unbinding-under-the-hammer";
const UNPLUGGED: &str = "works-after-the-device-was-unplugged";

/// The vector that a sabotage leaves masked.
const MASKED: usize = 3;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-event-hammer",
    summary: "drivers do everything with sources at once, under a storm, and while the device is unbound and unplugged",
    iommu: &Iommu::VTD,
    checks: &[HAMMER, UNBOUND, UNPLUGGED],
    sabotages: &[
        Sabotage { name: "stay-masked", what: "a vector stays masked after the hammer", fails: HAMMER },
        Sabotage {
            name: "stay-unbound",
            what: "the device is not given back to its driver in the end",
            fails: UNBOUND,
        },
        Sabotage { name: "stay-plugged", what: "the device is not unplugged", fails: UNPLUGGED },
    ],
    common: &[Common::KERNELS, Common::DAEMON],
    unsettled: None,
    limit: Duration::from_secs(400),
    run: |stand| stand.on_host(SCENARIO.name, &[IGB, XHCI], play),
};

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let daemon = Daemon::start(host, "daemon", &[IGB.spec_with_vfio(), XHCI.spec_with_vfio()])?;
    let guest = start_guest(host, "qemu", &Daemon::serve(host, guest_with(&[IGB, XHCI]))?, MODULES)?;
    let drivers = Drivers::bind(guest.agent())?;
    hammered(stand, &guest, &drivers)?;
    unbound(stand, &guest, &drivers)?;
    unplugged(stand, &guest, &drivers)?;
    guest_is_well(stand, &guest, 1)?;
    daemon.outlasts(stand, host, guest, 1)?;
    host_is_well(stand, host, None)
}

fn hammered(stand: &mut Stand<'_>, guest: &RunningGuest, drivers: &Drivers<'_>) -> Result<()> {
    let rounds = stand.times(HAMMER, ROUNDS);
    let mask = stand.sabotaged("stay-masked");
    stand.report.check(HAMMER, &guest.agent().kernel_log(), || {
        let tally = drivers.hammer(rounds, |_| Ok(()))?;
        drivers.all_work(mask)?;
        expect(tally.enough_given(), tally.to_string())
    })
}

fn unbound(stand: &mut Stand<'_>, guest: &RunningGuest, drivers: &Drivers<'_>) -> Result<()> {
    let rounds = stand.times(UNBOUND, ROUNDS);
    let stay = stand.sabotaged("stay-unbound");
    stand.report.check(UNBOUND, &guest.agent().kernel_log(), || {
        let driver = Driver::find(guest.agent())?;
        let mut times = 0;
        let tally = drivers.hammer(rounds, |progress| {
            while progress.reaches((times + 1) * BETWEEN) {
                driver.unbind()?;
                driver.bind()?;
                times += 1;
            }
            if stay { driver.unbind() } else { Ok(()) }
        })?;
        drivers.all_work(false)?;
        let few = rounds < ROUNDS;
        let seen = format!("taken from its driver {times} times in the middle of it; {tally}");
        expect(few || (times > 2 && tally.enough_given()), seen)
    })
}

/// With all vectors of both functions allocated.
fn unplugged(stand: &mut Stand<'_>, guest: &RunningGuest, drivers: &Drivers<'_>) -> Result<()> {
    let stay = stand.sabotaged("stay-plugged");
    let agent = guest.agent();
    stand.report.check(UNPLUGGED, &agent.kernel_log(), || {
        let device = Driver::find(agent)?.device;
        if !stay {
            // A virtio device is a child of its PCI function.
            agent.write(&format!("/sys/bus/virtio/devices/{device}/../remove"), "1")?;
        }
        let states = || Ok(drivers.igb.held()?.into_iter().map(|vector| vector.state).collect::<Vec<_>>());
        let gone = vec!["gone".to_owned(); igb::VECTORS];
        let seen = becoming(gone.clone(), states)?;
        if seen != gone {
            return Err(Unmet::Seen(format!("unplugged, and the driver's vectors are {seen:?}")));
        }
        agent.write("/sys/bus/pci/rescan", "1")?;
        becoming(true, || Ok(Driver::find(agent).is_ok()))?;
        drivers.all_work(false)?;
        Ok("its sources were gone, and new ones work after it was plugged in again".to_owned())
    })
}

/// The drivers of two functions of a guest, and what raises interrupts of one.
struct Drivers<'a> {
    igb: Vectors<'a>,
    xhci: Vectors<'a>,
    registers: Igb<'a>,
}

/// The vectors of a function: how all of them are allocated, and their number.
type All = (&'static str, usize);
const OF_IGB: All = ("msix any", igb::VECTORS);
const OF_XHCI: All = ("msi contiguous", 16);

impl<'a> Drivers<'a> {
    fn bind(guest: &'a Agent) -> Result<Self> {
        let (igb, xhci) = (Vectors::bind(guest, IGB)?, Vectors::bind(guest, XHCI)?);
        Ok(Self { igb, xhci, registers: Igb::prepare(guest)? })
    }

    /// Everything at once, and `meanwhile`, which can wait for progress.
    fn hammer(&self, rounds: usize, meanwhile: impl FnOnce(&Progress) -> Result<()>) -> Result<Tally> {
        let allocators = [(&self.igb, OF_IGB), (&self.igb, OF_IGB), (&self.xhci, OF_XHCI)];
        let progress = Progress::of(allocators.len());
        let progress = &progress;
        thread::scope(|scope| {
            let storm = scope.spawn(move || storm(&self.registers, progress));
            let maskers = [(&self.igb, OF_IGB), (&self.xhci, OF_XHCI)]
                .map(|(vectors, all)| scope.spawn(move || mask(vectors, all, progress)));
            let allocators = allocators.map(|(vectors, all)| {
                scope.spawn(move || {
                    let result = allocate(vectors, all, rounds, progress);
                    progress.one_is_done();
                    result
                })
            });
            let mut failed = meanwhile(progress);
            for allocator in allocators {
                failed = failed.and(joined(allocator));
            }
            let (mut masked, mut raised) = (0, 0);
            for masker in maskers {
                failed = failed.and(joined(masker).map(|count| masked += count));
            }
            failed = failed.and(joined(storm).map(|count| raised += count));
            let tried = 3 * rounds;
            let (given, longest) = progress.so_far();
            failed.map(|()| Tally { tried, given, masked, raised, longest })
        })
    }

    /// Both functions get all of their vectors, and each of the one that can raise them runs its handler.
    fn all_work(&self, leave_masked: bool) -> Result<(), Unmet> {
        for (vectors, (how, count)) in [(&self.igb, OF_IGB), (&self.xhci, OF_XHCI)] {
            ordinary(vectors.free(0, count))?;
            vectors.allocate(&format!("{how} {count} {count} 0"))?;
        }
        if leave_masked {
            self.igb.mask(MASKED)?;
        }
        raise_each(&self.igb, igb::VECTORS, |vector| self.registers.raise(vector))
    }
}

/// How far the drivers are that allocate.
struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    given: usize,
    /// The longest time that anything took.
    longest: Duration,
    /// Drivers that are not done.
    busy: usize,
}

impl Progress {
    fn of(busy: usize) -> Self {
        Self { state: Mutex::new(State { given: 0, longest: Duration::ZERO, busy }), changed: Condvar::new() }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Does it, if nobody else was quicker; whether it did.
    fn attempt(&self, what: impl FnOnce() -> Result<()>) -> Result<bool> {
        let start = Instant::now();
        let done = ordinary(what());
        self.change(|state| state.longest = state.longest.max(start.elapsed()));
        done
    }

    fn one_is_given(&self) {
        self.change(|state| state.given += 1);
    }

    fn one_is_done(&self) {
        self.change(|state| state.busy -= 1);
    }

    fn so_far(&self) -> (usize, Duration) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.given, state.longest)
    }

    fn goes_on(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).busy > 0
    }

    /// Waits until that many allocations were given; false if all are done before.
    fn reaches(&self, count: usize) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |state: &mut State| state.given < count && state.busy > 0;
        let state = self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        state.busy > 0
    }
}

/// Allocates some vectors, and frees some that may be another's, again and again.
fn allocate(vectors: &Vectors<'_>, (how, count): All, rounds: usize, progress: &Progress) -> Result<()> {
    for round in 0..rounds {
        let (first, most) = (round % (count / 2), 1 + round * 7 % (count / 2));
        if progress.attempt(|| vectors.allocate(&format!("{how} 1 {most} {first}")))? {
            progress.one_is_given();
        }
        progress.attempt(|| vectors.free(round * 5 % count, count / 2))?;
    }
    Ok(())
}

/// Masks and unmasks one vector after the other. Returns how often one was.
fn mask(vectors: &Vectors<'_>, (_, count): All, progress: &Progress) -> Result<usize> {
    let mut masked = 0;
    for vector in (0..count).cycle().take_while(|_| progress.goes_on()) {
        masked += usize::from(progress.attempt(|| vectors.mask(vector))?);
        progress.attempt(|| vectors.unmask(vector))?;
    }
    Ok(masked)
}

/// Raises one vector after the other. Returns how many.
fn storm(registers: &Igb<'_>, progress: &Progress) -> Result<usize> {
    let mut raised = 0;
    for vector in (0..igb::VECTORS).cycle().take_while(|_| progress.goes_on()) {
        registers.raise(vector)?;
        raised += 1;
    }
    Ok(raised)
}

/// Whether it was done; that it could not be is no failure where several do the same.
fn ordinary(result: Result<()>) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.errno().is_some_and(|errno| ORDINARY.contains(&errno)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(Error::Unexpected("a driver of the lab panicked".into())))
}

/// What was done.
#[derive(Debug)]
struct Tally {
    tried: usize,
    given: usize,
    masked: usize,
    raised: usize,
    longest: Duration,
}

impl Tally {
    /// Where nearly all are refused, little is hammered.
    fn enough_given(&self) -> bool {
        self.given * 3 > self.tried
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tried, given, masked, raised, longest } = self;
        write!(
            f,
            "{given} of {tried} allocations and {masked} masks, while {raised} interrupts were raised; the longest took {} ms",
            longest.as_millis()
        )
    }
}
