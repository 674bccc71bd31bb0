// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vring that survives what a guest or a frontend sets it up with.

use crate::deliveries::{Bell, Bells};
use crate::sys::{borrow, consume_event, signal_event};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// Guest memory, as the frontend shares it.
pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// [`VringMutex`], and whether the ring is usable.
///
/// vhost-user-backend ends the connection when a set-up message fails, and its worker when a kick cannot be read.
/// Both are too much: the guest chooses the ring's size and addresses, and QEMU aborts without its backend. So a
/// faulty set-up is taken note of and answered as if it were good, and the ring is left alone until it is set up
/// again.
#[derive(Clone)]
pub struct Ring {
    inner: VringMutex<Memory>,
    faulty: Arc<AtomicBool>,
    /// A notification came up while there was nothing to notify with.
    owed: Arc<AtomicBool>,
    /// The worker hears of each kick once, whether or not its eventfd is read. Becomes true under the lock of the ring.
    edges: Arc<AtomicBool>,
    /// Who hears of each kick beside the worker, and what they hear of it while the ring runs.
    bells: Arc<OnceLock<Bells>>,
    bell: Arc<Mutex<Option<Bell>>>,
}

impl Ring {
    /// Leaves the ring alone from now on. Returns whether that is news.
    pub(super) fn set_faulty(&self) -> bool {
        !self.faulty.swap(true, Ordering::Relaxed)
    }

    /// Locks the ring if it is set up, enabled and sound.
    pub(super) fn running(&self) -> Option<impl std::ops::DerefMut<Target = VringState<Memory>> + '_> {
        let state = self.inner.get_mut();
        // The flag is only read under the lock of the ring; the threads that set it hold or take that lock as well.
        let running = state.get_queue().ready() && state.is_enabled() && !self.faulty.load(Ordering::Relaxed);
        running.then_some(state)
    }

    /// The index of the available ring that the ring goes on from, if it is set up; whether it is sound or enabled does
    /// not matter. Right after a set-up this is what the frontend gave: 0 for a driver that begins.
    pub(super) fn position(&self) -> Option<u16> {
        let state = self.inner.get_ref();
        state.get_queue().ready().then(|| state.get_queue().next_avail())
    }

    /// Whether the frontend enabled the ring.
    pub(super) fn is_enabled(&self) -> bool {
        self.inner.get_ref().is_enabled()
    }

    /// Notifies the driver; if there is no call eventfd yet, as soon as there is one. A frontend may start a ring
    /// before it sends that.
    pub(super) fn notify(&self, state: &VringState<Memory>) {
        match state.get_call() {
            Some(call) => signal_event(borrow(call)),
            None => self.owed.store(true, Ordering::Relaxed),
        }
    }

    /// Has the worker, which waits at `epoll`, watch the kicks of this queue edge-triggered from now on. The library watches
    /// them level-triggered, so that each costs a read. What was kicked before is told once more.
    pub(super) fn watch_edges(&self, epoll: BorrowedFd<'_>, queue: u16) {
        if self.edges.load(Ordering::Relaxed) {
            return;
        }
        // The library registers an eventfd anew only after it has taken this lock, and set the flag back.
        let state = self.inner.get_mut();
        let Some(kick) = state.get_kick().as_ref().filter(|_| state.is_enabled()) else { return };
        let flags = EventFlags::IN | EventFlags::ET;
        // It fails for one that is not registered.
        let watched = epoll::modify(epoll, borrow(kick), EventData::new_u64(queue.into()), flags);
        self.edges.store(watched.is_ok(), Ordering::Relaxed);
    }

    /// Has somebody else hear of the kicks of this queue as well, from now on: the worker can be busy.
    pub(super) fn tell_kicks(&self, bells: impl FnOnce() -> Bells) {
        if self.bells.get().is_none() {
            let state = self.inner.get_ref();
            self.bells.get_or_init(bells);
            self.hang_bell(&state);
        }
    }

    /// To be called with the lock of the ring after each change of what it depends on.
    fn hang_bell(&self, state: &VringState<Memory>) {
        let Some(bells) = self.bells.get() else { return };
        let runs = state.get_queue().ready() && state.is_enabled();
        let kick = state.get_kick().as_ref().filter(|_| runs);
        // Where it fails, the worker is there still.
        let bell = kick.and_then(|kick| bells.add(borrow(kick)).ok());
        *self.bell.lock().unwrap_or_else(PoisonError::into_inner) = bell;
    }

    fn check<T>(&self, result: Result<T, QueueError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(_) => {
                self.set_faulty();
                None
            }
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("faulty", &self.faulty).finish_non_exhaustive()
    }
}

impl<'a> VringStateGuard<'a, Memory> for Ring {
    type G = <VringMutex<Memory> as VringStateGuard<'a, Memory>>::G;
}

impl<'a> VringStateMutGuard<'a, Memory> for Ring {
    type G = <VringMutex<Memory> as VringStateMutGuard<'a, Memory>>::G;
}

impl VringT<Memory> for Ring {
    fn new(mem: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        Ok(Self {
            inner: VringMutex::new(mem, max_queue_size)?,
            faulty: Arc::default(),
            owed: Arc::default(),
            edges: Arc::default(),
            bells: Arc::default(),
            bell: Arc::default(),
        })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.inner.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.inner.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.inner.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.inner.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.inner.needs_notification()
    }

    /// The library registers the kick's eventfd, or takes it away, after this.
    fn set_enabled(&self, enabled: bool) {
        let mut state = self.inner.get_mut();
        state.set_enabled(enabled);
        self.edges.store(false, Ordering::Relaxed);
        self.hang_bell(&state);
    }

    /// Addresses come from the guest's driver.
    fn set_queue_info(&self, desc_table: u64, avail_ring: u64, used_ring: u64) -> Result<(), QueueError> {
        self.check(self.inner.set_queue_info(desc_table, avail_ring, used_ring));
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.inner.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.inner.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.inner.set_queue_next_used(idx);
    }

    /// Read during set-up, from a used ring that may not be in memory.
    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        Ok(self.check(self.inner.queue_used_idx()).unwrap_or(0))
    }

    /// The size comes from the guest's driver; [`virtio_queue`] keeps the old one if it is not a power of two.
    fn set_queue_size(&self, num: u16) {
        self.check(self.inner.get_mut().get_queue_mut().try_set_size(num));
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.set_queue_event_idx(enabled);
    }

    /// GET_VRING_BASE takes the ring down: the next set-up starts afresh.
    fn set_queue_ready(&self, ready: bool) {
        let mut state = self.inner.get_mut();
        state.get_queue_mut().set_ready(ready);
        self.edges.store(false, Ordering::Relaxed);
        self.hang_bell(&state);
        if !ready {
            self.faulty.store(false, Ordering::Relaxed);
            self.owed.store(false, Ordering::Relaxed);
        }
    }

    /// As with [`Ring::set_enabled`], registering comes after.
    fn set_kick(&self, file: Option<File>) {
        self.inner.set_kick(file.and_then(|file| usable_event(file).ok()));
        self.edges.store(false, Ordering::Relaxed);
        self.hang_bell(&self.inner.get_ref());
    }

    /// Says whether the ring is enabled. That the kick cannot be read is no reason to end the worker: an event that
    /// somebody else consumed is no event.
    fn read_kick(&self) -> io::Result<bool> {
        let state = self.inner.get_ref();
        if let Some(kick) = state.get_kick().as_ref().filter(|_| !self.edges.load(Ordering::Relaxed)) {
            consume_event(borrow(kick));
        }
        Ok(state.is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        self.inner.set_call(file.and_then(|file| usable_event(file).ok()));
        let state = self.inner.get_ref();
        if state.get_call().is_some() && self.owed.swap(false, Ordering::Relaxed) {
            self.notify(&state);
        }
    }

    fn set_err(&self, file: Option<File>) {
        self.inner.set_err(file);
    }
}

/// Accepts an eventfd, and sees to it that neither reading nor writing it blocks, as long as the frontend leaves it so. Anything
/// else is dropped, as if the frontend had sent none: a pipe whose other end is closed would keep the worker busy forever.
fn usable_event(file: File) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    let target = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    if !target.as_os_str().as_encoded_bytes().starts_with(b"anon_inode:[eventfd") {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = fcntl_getfl(&file)?;
    if !flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
    }
    Ok(file)
}
