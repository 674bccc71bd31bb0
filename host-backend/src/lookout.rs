// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One descriptor that says when the host is to be looked after: at regular times while there is something to look
//! after, when a VMM ends, and when sources that fired too often may fire again.

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use virtio_irq_proto::FunctionId;

/// Time between two looks: what a guest that lost its interrupts waits at most before it hears of it.
const EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

const CLOCK: u64 = u64::MAX;
const ALARM: u64 = u64::MAX - 1;

/// See the module's description.
#[derive(Debug)]
pub struct Lookout {
    epoll: OwnedFd,
    clock: OwnedFd,
    alarm: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ticks: bool,
    owners: BTreeMap<FunctionId, OwnedFd>,
}

/// What there is to look after.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Occasion {
    /// It is time for a regular look.
    pub(crate) tick: bool,
    /// It is the time of the alarm.
    pub(crate) alarm: bool,
    /// The VMMs of these functions ended.
    pub(crate) ended: Vec<FunctionId>,
}

impl Lookout {
    /// Nothing to look after yet: it does not wake anybody.
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = |mark| -> io::Result<OwnedFd> {
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            epoll::add(&epoll, &timer, EventData::new_u64(mark), EventFlags::IN)?;
            Ok(timer)
        };
        let (clock, alarm) = (timer(CLOCK)?, timer(ALARM)?);
        Ok(Self { epoll, clock, alarm, state: Mutex::default() })
    }

    /// Starts or stops the regular times.
    pub(crate) fn tick(&self, ticks: bool) -> io::Result<()> {
        let mut state = self.state();
        if state.ticks != ticks {
            let every = if ticks { EVERY } else { Timespec::default() };
            set(&self.clock, every, every)?;
            state.ticks = ticks;
        }
        Ok(())
    }

    /// Sets the alarm to a time, which may be past, or off.
    pub(crate) fn alarm(&self, at: Option<Instant>) -> io::Result<()> {
        // A timer that is set to 0 is off.
        let left = at.map(|at| at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1)));
        let left = left.map_or(Ok(Timespec::default()), Timespec::try_from);
        set(&self.alarm, left.map_err(|_| io::ErrorKind::InvalidInput)?, Timespec::default())
    }

    /// Waits for the end of the function's VMM, until the function is forgotten.
    pub(crate) fn watch(&self, function: FunctionId, owner: OwnedFd) -> io::Result<()> {
        let mut state = self.state();
        forget(&self.epoll, &mut state, function);
        let data = EventData::new_u64(u64::from(function.0));
        epoll::add(&self.epoll, &owner, data, EventFlags::IN | EventFlags::ET)?;
        state.owners.insert(function, owner);
        Ok(())
    }

    /// Waits no more.
    pub(crate) fn forget(&self, function: FunctionId) {
        forget(&self.epoll, &mut self.state(), function);
    }

    /// What there is to look after since the last call.
    pub(crate) fn occasion(&self) -> io::Result<Occasion> {
        let mut events = Vec::with_capacity(16);
        let now = Timespec::default();
        epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now))?;
        let mut occasion = Occasion::default();
        for event in &events {
            match (event.data.u64(), u16::try_from(event.data.u64())) {
                (CLOCK, _) => {
                    // The kernel sets it anew when it is read. It is empty if it was stopped meanwhile.
                    let _ = rustix::io::read(&self.clock, &mut [0; 8]);
                    occasion.tick = true;
                }
                (ALARM, _) => {
                    let _ = rustix::io::read(&self.alarm, &mut [0; 8]);
                    occasion.alarm = true;
                }
                (_, Ok(function)) => occasion.ended.push(FunctionId(function)),
                _ => {}
            }
        }
        Ok(occasion)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one insertion, removal or assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set(timer: &OwnedFd, first: Timespec, every: Timespec) -> io::Result<()> {
    let times = Itimerspec { it_interval: every, it_value: first };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &times)?;
    Ok(())
}

fn forget(epoll: &OwnedFd, state: &mut State, function: FunctionId) {
    if let Some(owner) = state.owners.remove(&function) {
        // Closing is not enough: it is a duplicate, and the original may still be open.
        let _ = epoll::delete(epoll, owner);
    }
}

/// Readable while there is something that [`Bridge::look_after`](crate::bridge::Bridge::look_after) did not look after yet.
impl AsFd for Lookout {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

    fn wakes(lookout: &Lookout, within: Timespec) -> bool {
        poll(&mut [PollFd::new(lookout, PollFlags::IN)], Some(&within)).unwrap() == 1
    }

    const LONG: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };
    const TWO_TICKS: Timespec = Timespec { tv_sec: 0, tv_nsec: 400_000_000 };

    #[test]
    fn it_ticks_while_it_is_told_to_and_never_otherwise() {
        let lookout = Lookout::new().unwrap();
        assert!(!wakes(&lookout, TWO_TICKS));
        lookout.tick(true).unwrap();
        for _ in 0..2 {
            assert!(wakes(&lookout, LONG));
            assert_eq!(lookout.occasion().unwrap(), Occasion { tick: true, ..Occasion::default() });
            assert_eq!(lookout.occasion().unwrap(), Occasion::default());
        }
        lookout.tick(false).unwrap();
        let _ = lookout.occasion();
        assert!(!wakes(&lookout, TWO_TICKS));
    }

    #[test]
    fn an_alarm_comes_once_and_not_if_it_was_switched_off() {
        let lookout = Lookout::new().unwrap();
        lookout.alarm(Some(Instant::now())).unwrap();
        assert!(wakes(&lookout, LONG));
        assert!(lookout.occasion().unwrap().alarm);
        assert_eq!(lookout.occasion().unwrap(), Occasion::default());
        lookout.alarm(Some(Instant::now() + Duration::from_millis(100))).unwrap();
        lookout.alarm(None).unwrap();
        assert!(!wakes(&lookout, TWO_TICKS));
    }

    #[test]
    fn an_owner_that_ends_is_told_once_and_a_forgotten_one_never() {
        let lookout = Lookout::new().unwrap();
        let owners = [0, 1, 2].map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        for (id, owner) in (5..).zip(&owners) {
            lookout.watch(FunctionId(id), owner.try_clone().unwrap()).unwrap();
        }
        lookout.forget(FunctionId(6));
        for owner in &owners {
            rustix::io::write(owner, &1u64.to_ne_bytes()).unwrap();
        }
        assert!(wakes(&lookout, LONG));
        let ended = lookout.occasion().unwrap().ended;
        assert_eq!(ended, [FunctionId(5), FunctionId(7)]);
        assert_eq!(lookout.occasion().unwrap(), Occasion::default());
        // Another one for a function replaces the one before.
        let [first, second] = [0, 1].map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        lookout.watch(FunctionId(7), first.try_clone().unwrap()).unwrap();
        lookout.watch(FunctionId(7), second).unwrap();
        rustix::io::write(first, &1u64.to_ne_bytes()).unwrap();
        assert_eq!(lookout.occasion().unwrap(), Occasion::default());
    }
}
