// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One eventfd per source, and one descriptor that says that any of them was signalled.

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_irq_proto::SourceId;

/// Number of sources that one look reports.
pub const BATCH: usize = 256;

/// The eventfds that the host signals when a source fires.
///
/// They are watched edge-triggered and not read: each signal is an edge of its own, so an interrupt costs its share of the
/// `epoll_wait` that waits for it, and no system call more. The counter behind an eventfd has 64 bits and does not fill up.
#[derive(Debug)]
pub struct Deliveries {
    epoll: Arc<OwnedFd>,
    /// Ends one wait.
    bell: OwnedFd,
    triggers: Mutex<Triggers>,
    /// Number of the triggers, for who only wants to know whether there are any.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Triggers {
    by_source: BTreeMap<SourceId, Trigger>,
    /// Tells the present owner of a source id from earlier ones, whose last signal may still be on its way.
    next_epoch: u32,
}

#[derive(Debug)]
struct Trigger {
    /// Shared with whoever hands it to the host, which takes its time: the lock is not held for that.
    eventfd: Arc<OwnedFd>,
    epoch: u32,
}

/// A source that was signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// Which source.
    pub source: SourceId,
    epoch: u32,
}

/// Room for the signals of one look.
#[derive(Debug)]
pub struct Room([MaybeUninit<epoll::Event>; BATCH]);

impl Room {
    /// Empty room.
    pub fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; BATCH])
    }
}

impl Default for Room {
    fn default() -> Self {
        Self::new()
    }
}

/// Signals as they were when somebody looked. Their sources can have ended since.
#[derive(Clone, Copy)]
pub struct Signals<'a>(&'a [epoll::Event]);

impl fmt::Debug for Signals<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signals").field(&self.0.len()).finish()
    }
}

impl Signals<'_> {
    /// Whether nothing was signalled.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

impl Deliveries {
    /// No sources yet.
    ///
    /// # Errors
    /// The process is out of descriptors or memory.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &bell, EventData::new_u64(BELL), EventFlags::IN | EventFlags::ET)?;
        let epoll = Arc::new(epoll);
        Ok(Self { epoll, bell, triggers: Mutex::default(), count: AtomicUsize::new(0) })
    }

    /// Makes an eventfd for each source and watches it. They are returned in the order of the sources.
    ///
    /// # Errors
    /// The process is out of descriptors or memory; then none was made.
    pub fn open(&self, sources: impl Iterator<Item = SourceId> + Clone) -> io::Result<Vec<Arc<OwnedFd>>> {
        let made = self.open_each(sources.clone());
        if made.is_err() {
            self.close(sources);
        }
        made
    }

    fn open_each(&self, sources: impl Iterator<Item = SourceId>) -> io::Result<Vec<Arc<OwnedFd>>> {
        let mut triggers = self.triggers();
        let open = |source| {
            let eventfd = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
            let epoch = triggers.next_epoch;
            triggers.next_epoch = epoch.wrapping_add(1);
            epoll::add(&self.epoll, &eventfd, mark(source, epoch), EventFlags::IN | EventFlags::ET)?;
            triggers.by_source.insert(source, Trigger { eventfd: Arc::clone(&eventfd), epoch });
            Ok(eventfd)
        };
        let made = sources.map(open).collect();
        self.count.store(triggers.by_source.len(), Ordering::Relaxed);
        made
    }

    /// Closes the eventfds of these sources, which ends their being watched.
    pub fn close(&self, sources: impl Iterator<Item = SourceId>) {
        let mut triggers = self.triggers();
        for source in sources {
            triggers.by_source.remove(&source);
        }
        self.count.store(triggers.by_source.len(), Ordering::Relaxed);
    }

    /// Watches the source that signalled no more, and forgets that it was signalled, until [`Deliveries::resume`]. It is
    /// left alone if it ended meanwhile.
    ///
    /// # Errors
    /// None that a valid descriptor gives; the source is watched still, then.
    pub fn pause(&self, signal: Signal) -> io::Result<()> {
        let triggers = self.triggers();
        let Some(trigger) = triggers.of(signal) else { return Ok(()) };
        epoll::modify(&self.epoll, &trigger.eventfd, mark(signal.source, signal.epoch), EventFlags::empty())?;
        // Empty if it was not signalled.
        let _ = rustix::io::read(&trigger.eventfd, &mut [0; 8]);
        Ok(())
    }

    /// Watches the source again. That it was signalled meanwhile counts as once from now on.
    ///
    /// # Errors
    /// As for [`Deliveries::pause`].
    pub fn resume(&self, source: SourceId) -> io::Result<()> {
        let triggers = self.triggers();
        let Some(Trigger { eventfd, epoch }) = triggers.by_source.get(&source) else { return Ok(()) };
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::modify(&self.epoll, eventfd, mark(source, *epoch), flags)?;
        Ok(())
    }

    /// Number of sources with an eventfd.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The signals that nobody took yet, in the order of the first of each, at most [`BATCH`] of them.
    ///
    /// # Errors
    /// None that a valid descriptor gives; a caller logs it and goes on.
    pub fn take<'a>(&self, room: &'a mut Room) -> io::Result<Signals<'a>> {
        self.take_within(room, Some(Timespec::default()))
    }

    /// [`Deliveries::take`] that waits until there are some, or until somebody [rings](Deliveries::ring).
    ///
    /// # Errors
    /// As for [`Deliveries::take`], and a signal of another kind.
    pub fn wait<'a>(&self, room: &'a mut Room) -> io::Result<Signals<'a>> {
        self.take_within(room, None)
    }

    fn take_within<'a>(&self, room: &'a mut Room, time: Option<Timespec>) -> io::Result<Signals<'a>> {
        let (signals, _) = epoll::wait(&self.epoll, &mut room.0, time.as_ref())?;
        Ok(Signals(signals))
    }

    /// Ends a [wait](Deliveries::wait), the present one or the next; a [take](Deliveries::take) before that ends it instead.
    pub fn ring(&self) {
        // It fails only if the counter is full, and nobody counts that far.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Where others than [`Deliveries::ring`] can end a wait.
    pub(crate) fn bells(&self) -> Bells {
        Bells(Arc::clone(&self.epoll))
    }

    /// Gives `sink` those of the signals whose sources did not end since.
    pub fn give(&self, signals: Signals<'_>, mut sink: impl FnMut(Signal)) {
        let triggers = self.triggers();
        for event in signals.0 {
            let data = event.data.u64();
            let signal = Signal { source: SourceId(data as u32), epoch: (data >> 32) as u32 };
            if data != BELL && triggers.of(signal).is_some() {
                sink(signal);
            }
        }
    }

    fn triggers(&self) -> MutexGuard<'_, Triggers> {
        // Every change is one insertion or removal.
        self.triggers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Deliveries::bells`].
#[derive(Clone, Debug)]
pub(crate) struct Bells(Arc<OwnedFd>);

/// An eventfd that ends a wait whenever it is signalled, as long as this is there.
#[derive(Debug)]
pub(crate) struct Bell {
    at: Bells,
    eventfd: OwnedFd,
}

impl Bells {
    /// If it is signalled already, that ends the present wait or the next one.
    pub(crate) fn add(&self, eventfd: BorrowedFd<'_>) -> io::Result<Bell> {
        let eventfd = eventfd.try_clone_to_owned()?;
        epoll::add(&*self.0, &eventfd, EventData::new_u64(BELL), EventFlags::IN | EventFlags::ET)?;
        Ok(Bell { at: self.clone(), eventfd })
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        // Closing is not enough: it is a duplicate, and the original is somebody else's.
        let _ = epoll::delete(&*self.at.0, &self.eventfd);
    }
}

impl Triggers {
    /// Whatever signalled this, if it is there still.
    fn of(&self, signal: Signal) -> Option<&Trigger> {
        self.by_source.get(&signal.source).filter(|trigger| trigger.epoch == signal.epoch)
    }
}

/// What bells are marked with. A source would have to be the last of all ids, which is beyond every quota.
const BELL: u64 = u64::MAX;

fn mark(source: SourceId, epoch: u32) -> EventData {
    EventData::new_u64(u64::from(epoch) << 32 | u64::from(source.0))
}

/// Readable while there is something to [take](Deliveries::take).
impl AsFd for Deliveries {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(eventfd: &OwnedFd) {
        rustix::io::write(eventfd, &1u64.to_ne_bytes()).unwrap();
    }

    fn signals(deliveries: &Deliveries) -> Vec<Signal> {
        let mut some = Vec::new();
        let mut room = Room::new();
        deliveries.give(deliveries.take(&mut room).unwrap(), |signal| some.push(signal));
        some
    }

    fn fired(deliveries: &Deliveries) -> Vec<u32> {
        let mut all: Vec<_> = signals(deliveries).iter().map(|signal| signal.source.0).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn every_signal_is_given_once() {
        let deliveries = Deliveries::new().unwrap();
        let eventfds = deliveries.open([3, 4, 9].map(SourceId).into_iter()).unwrap();
        assert_eq!(fired(&deliveries), [0; 0]);
        signal(&eventfds[2]);
        signal(&eventfds[0]);
        signal(&eventfds[0]);
        assert_eq!(fired(&deliveries), [3, 9]);
        assert_eq!(fired(&deliveries), [0; 0]);
        signal(&eventfds[0]);
        assert_eq!(fired(&deliveries), [3]);
    }

    #[test]
    fn a_paused_source_is_silent_and_tells_afterwards_that_it_was_signalled() {
        let deliveries = Deliveries::new().unwrap();
        let eventfds = deliveries.open([3, 4].map(SourceId).into_iter()).unwrap();
        let (three, four) = (&eventfds[0], &eventfds[1]);
        signal(three);
        let known = signals(&deliveries);
        assert_eq!((known.len(), known[0].source), (1, SourceId(3)));
        deliveries.pause(known[0]).unwrap();
        deliveries.resume(SourceId(3)).unwrap();
        assert_eq!(fired(&deliveries), [0; 0], "what was signalled before is known");
        deliveries.pause(known[0]).unwrap();
        signal(three);
        signal(three);
        signal(four);
        assert_eq!(fired(&deliveries), [4]);
        deliveries.resume(SourceId(3)).unwrap();
        assert_eq!(fired(&deliveries), [3]);
        assert_eq!(fired(&deliveries), [0; 0]);
        signal(three);
        assert_eq!(fired(&deliveries), [3]);
        deliveries.resume(SourceId(9)).unwrap();
    }

    #[test]
    fn a_pause_is_not_for_the_successor() {
        let deliveries = Deliveries::new().unwrap();
        let source = [SourceId(3)].into_iter();
        signal(&deliveries.open(source.clone()).unwrap()[0]);
        let late = signals(&deliveries);
        deliveries.close(source.clone());
        let successor = deliveries.open(source).unwrap();
        signal(&successor[0]);
        deliveries.pause(late[0]).unwrap();
        assert_eq!(fired(&deliveries), [3]);
    }

    #[test]
    fn the_bell_ends_one_wait_and_is_no_source() {
        let deliveries = Deliveries::new().unwrap();
        let mut room = Room::new();
        for _ in 0..2 {
            deliveries.ring();
            let signals = deliveries.wait(&mut room).unwrap();
            assert!(!signals.is_empty());
            deliveries.give(signals, |signal| panic!("{signal:?}"));
            assert!(deliveries.take(&mut room).unwrap().is_empty());
        }
    }

    #[test]
    fn a_bell_of_somebody_else_rings_until_it_is_taken_away() {
        let deliveries = Deliveries::new().unwrap();
        let (eventfd, mut room) = (eventfd(0, EventfdFlags::NONBLOCK).unwrap(), Room::new());
        signal(&eventfd);
        let bell = deliveries.bells().add(eventfd.as_fd()).unwrap();
        for _ in 0..2 {
            deliveries.give(deliveries.wait(&mut room).unwrap(), |signal| panic!("{signal:?}"));
            assert!(deliveries.take(&mut room).unwrap().is_empty());
            signal(&eventfd);
        }
        drop(bell);
        signal(&eventfd);
        assert!(deliveries.take(&mut room).unwrap().is_empty());
    }

    #[test]
    fn signals_come_in_the_order_of_the_first_of_each() {
        let deliveries = Deliveries::new().unwrap();
        let eventfds = deliveries.open((0..8).map(SourceId)).unwrap();
        for source in [5, 2, 7, 2, 5, 0] {
            signal(&eventfds[source]);
        }
        let order: Vec<_> = signals(&deliveries).iter().map(|signal| signal.source.0).collect();
        assert_eq!(order, [5, 2, 7, 0]);
    }

    #[test]
    fn more_than_a_batch_comes_in_pieces() {
        let deliveries = Deliveries::new().unwrap();
        for eventfd in deliveries.open((0..BATCH as u32 + 5).map(SourceId)).unwrap() {
            signal(&eventfd);
        }
        let mut room = Room::new();
        assert_eq!(deliveries.take(&mut room).unwrap().0.len(), BATCH);
        assert_eq!(fired(&deliveries).len(), 5);
    }

    #[test]
    fn a_closed_source_says_nothing_and_neither_does_its_successor() {
        let deliveries = Deliveries::new().unwrap();
        // As it is while the host is being called with it.
        let before = deliveries.open([SourceId(7)].into_iter()).unwrap();
        signal(&before[0]);
        deliveries.close([SourceId(7)].into_iter());
        let after = deliveries.open([SourceId(7)].into_iter()).unwrap();
        signal(&before[0]);
        assert_eq!(fired(&deliveries), [0; 0]);
        signal(&after[0]);
        assert_eq!(fired(&deliveries), [7]);
    }
}
