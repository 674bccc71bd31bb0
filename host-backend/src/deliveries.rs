// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One eventfd per source, and one descriptor that says that any of them was signalled.

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use virtio_irq_proto::SourceId;

/// Number of sources that one look reports.
pub const BATCH: usize = 256;

/// The eventfds that the host signals when a source fires.
///
/// They are watched edge-triggered and never read: each signal is an edge of its own, so an interrupt costs its share
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
    eventfd: OwnedFd,
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

    /// Makes an eventfd for each source and watches it.
    ///
    /// # Errors
    /// The process is out of descriptors or memory; then none was made.
    pub fn open(&self, sources: impl Iterator<Item = SourceId> + Clone) -> io::Result<()> {
        let made = self.open_each(sources.clone());
        if made.is_err() {
            self.close(sources);
        }
        made
    }

    fn open_each(&self, sources: impl Iterator<Item = SourceId>) -> io::Result<()> {
        let mut triggers = self.triggers();
        for source in sources {
            let eventfd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
            let epoch = triggers.next_epoch;
            triggers.next_epoch = epoch.wrapping_add(1);
            let data = EventData::new_u64(u64::from(epoch) << 32 | u64::from(source.0));
            epoll::add(&self.epoll, &eventfd, data, EventFlags::IN | EventFlags::ET)?;
            triggers.by_source.insert(source, Trigger { eventfd, epoch });
        }
        Ok(())
    }

    /// Closes the eventfds of these sources, which ends their being watched.
    pub fn close(&self, sources: impl Iterator<Item = SourceId>) {
        let mut triggers = self.triggers();
        for source in sources {
            triggers.by_source.remove(&source);
        }
    }

    /// Calls `use_them` with the eventfds of these sources, as far as they are open.
    pub fn with<R>(
        &self,
        sources: impl Iterator<Item = SourceId>,
        use_them: impl FnOnce(&[BorrowedFd<'_>]) -> R,
    ) -> R {
        let triggers = self.triggers();
        let fds: Vec<_> = sources
            .filter_map(|source| triggers.by_source.get(&source))
            .map(|trigger| trigger.eventfd.as_fd())
            .collect();
        use_them(&fds)
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

/// Readable while a source was signalled that [`Deliveries::fired`] did not give yet.
impl AsFd for Deliveries {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(deliveries: &Deliveries, source: SourceId) {
        deliveries.with([source].into_iter(), |fds| rustix::io::write(fds[0], &1u64.to_ne_bytes()).unwrap());
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
        deliveries.open([3, 4, 9].map(SourceId).into_iter()).unwrap();
        assert_eq!(fired(&deliveries), [0; 0]);
        signal(&deliveries, SourceId(9));
        signal(&deliveries, SourceId(3));
        signal(&deliveries, SourceId(3));
        assert_eq!(fired(&deliveries), [3, 9]);
        assert_eq!(fired(&deliveries), [0; 0]);
        signal(&deliveries, SourceId(3));
        assert_eq!(fired(&deliveries), [3]);
    }

    #[test]
    fn more_than_a_batch_comes_in_pieces() {
        let deliveries = Deliveries::new().unwrap();
        deliveries.open((0..BATCH as u32 + 5).map(SourceId)).unwrap();
        for source in 0..BATCH as u32 + 5 {
            signal(&deliveries, SourceId(source));
        }
        let mut first = 0;
        assert!(deliveries.fired(|_| first += 1).unwrap());
        assert_eq!(first, BATCH);
        assert_eq!(fired(&deliveries).len(), 5);
    }

    #[test]
    fn a_closed_source_says_nothing_and_neither_does_its_successor() {
        let deliveries = Deliveries::new().unwrap();
        deliveries.open([SourceId(7)].into_iter()).unwrap();
        signal(&deliveries, SourceId(7));
        deliveries.close([SourceId(7)].into_iter());
        deliveries.open([SourceId(7)].into_iter()).unwrap();
        assert_eq!(fired(&deliveries), [0; 0]);
        signal(&deliveries, SourceId(7));
        assert_eq!(fired(&deliveries), [7]);
    }
}
