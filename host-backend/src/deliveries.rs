// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One eventfd per source, and one descriptor that says that any of them was signalled.

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_irq_proto::SourceId;

/// Number of sources that one look reports.
pub const BATCH: usize = 256;

/// The eventfds that the host signals when a source fires.
///
/// They are watched edge-triggered and not read: each signal is an edge of its own, so an interrupt costs its share
/// of one `epoll_wait` and no system call more. The counter behind an eventfd has 64 bits and does not fill up.
#[derive(Debug)]
pub struct Deliveries {
    epoll: OwnedFd,
    triggers: Mutex<Triggers>,
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

impl Deliveries {
    /// No sources yet.
    ///
    /// # Errors
    /// The process is out of descriptors or memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, triggers: Mutex::default() })
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
        sources.map(open).collect()
    }

    /// Closes the eventfds of these sources, which ends their being watched.
    pub fn close(&self, sources: impl Iterator<Item = SourceId>) {
        let mut triggers = self.triggers();
        for source in sources {
            triggers.by_source.remove(&source);
        }
    }

    /// Watches the source no more, and forgets that it was signalled, until [`Deliveries::resume`].
    ///
    /// # Errors
    /// None that a valid descriptor gives; the source is watched still, then.
    pub fn pause(&self, source: SourceId) -> io::Result<()> {
        self.watch(source, EventFlags::empty(), |eventfd| {
            // Empty if it was not signalled.
            let _ = rustix::io::read(eventfd, &mut [0; 8]);
        })
    }

    /// Watches the source again. That it was signalled meanwhile counts as once from now on.
    ///
    /// # Errors
    /// As for [`Deliveries::pause`].
    pub fn resume(&self, source: SourceId) -> io::Result<()> {
        self.watch(source, EventFlags::IN | EventFlags::ET, |_| ())
    }

    fn watch(
        &self,
        source: SourceId,
        flags: EventFlags,
        then: impl FnOnce(BorrowedFd<'_>),
    ) -> io::Result<()> {
        let triggers = self.triggers();
        let Some(Trigger { eventfd, epoch }) = triggers.by_source.get(&source) else { return Ok(()) };
        epoll::modify(&self.epoll, eventfd, mark(source, *epoch), flags)?;
        then(eventfd.as_fd());
        Ok(())
    }

    /// Number of sources with an eventfd.
    pub fn count(&self) -> usize {
        self.triggers().by_source.len()
    }

    /// Gives `sink` the sources that were signalled since they were last given, at most [`BATCH`] of them. Returns
    /// whether there may be more.
    ///
    /// # Errors
    /// None that a valid descriptor gives; a caller logs it and goes on.
    pub fn fired(&self, mut sink: impl FnMut(SourceId)) -> io::Result<bool> {
        let mut events = Vec::with_capacity(BATCH);
        let zero = Timespec::default();
        epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&zero))?;
        let triggers = self.triggers();
        for event in &events {
            let data = event.data.u64();
            let (source, epoch) = (SourceId(data as u32), (data >> 32) as u32);
            if triggers.by_source.get(&source).is_some_and(|trigger| trigger.epoch == epoch) {
                sink(source);
            }
        }
        Ok(events.len() == BATCH)
    }

    fn triggers(&self) -> MutexGuard<'_, Triggers> {
        // Every change is one insertion or removal.
        self.triggers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn mark(source: SourceId, epoch: u32) -> EventData {
    EventData::new_u64(u64::from(epoch) << 32 | u64::from(source.0))
}

/// Readable while a source was signalled that [`Deliveries::fired`] did not give yet.
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

    fn fired(deliveries: &Deliveries) -> Vec<u32> {
        let mut all = Vec::new();
        while deliveries.fired(|source| all.push(source.0)).unwrap() {}
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
        assert_eq!(fired(&deliveries), [3]);
        deliveries.pause(SourceId(3)).unwrap();
        deliveries.resume(SourceId(3)).unwrap();
        assert_eq!(fired(&deliveries), [0; 0], "what was signalled before is known");
        deliveries.pause(SourceId(3)).unwrap();
        signal(three);
        signal(three);
        signal(four);
        assert_eq!(fired(&deliveries), [4]);
        deliveries.resume(SourceId(3)).unwrap();
        assert_eq!(fired(&deliveries), [3]);
        assert_eq!(fired(&deliveries), [0; 0]);
        signal(three);
        assert_eq!(fired(&deliveries), [3]);
        deliveries.pause(SourceId(9)).unwrap();
    }

    #[test]
    fn more_than_a_batch_comes_in_pieces() {
        let deliveries = Deliveries::new().unwrap();
        for eventfd in deliveries.open((0..BATCH as u32 + 5).map(SourceId)).unwrap() {
            signal(&eventfd);
        }
        let mut first = 0;
        assert!(deliveries.fired(|_| first += 1).unwrap());
        assert_eq!(first, BATCH);
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
