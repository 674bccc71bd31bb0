// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One virtqueue, with the buffers that the device holds.

use crate::hal::{GuestHal, within};
use crate::memory::{GuestMemory, pages_for};
use crate::transport::VhostUser;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_drivers::queue::VirtQueue;

/// Descriptors of a queue.
pub(crate) const SIZE: usize = 16;

/// A virtqueue that owns every buffer it has given to the device until the device returns it.
#[derive(Debug)]
pub(crate) struct Queue {
    ring: ManuallyDrop<VirtQueue<GuestHal, SIZE>>,
    memory: Arc<GuestMemory>,
    /// What the device holds, by the token of the ring.
    given: [Option<Buffers>; SIZE],
}

/// The two parts of a chain. At least one is not empty.
#[derive(Debug)]
pub(crate) struct Buffers {
    pub(crate) readable: Box<[u8]>,
    pub(crate) writable: Box<[u8]>,
}

/// A chain that the device is done with.
#[derive(Debug)]
pub(crate) struct Used {
    pub(crate) token: u16,
    pub(crate) buffers: Buffers,
    length: usize,
}

/// What went wrong with a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// No free descriptor or no memory: requests that the device never answered hold them.
    #[error("the ring is full of requests that the device has not answered; reset the device")]
    Full,
    /// The used ring names a chain that the device does not have.
    #[error("the device returned a buffer that it was not given")]
    NotGiven,
    /// The used ring says that the device wrote more than there is room for.
    #[error("the device says it wrote {used} bytes into a buffer of {room}")]
    TooLong {
        /// Bytes that the device says it wrote.
        used: u32,
        /// Bytes that it could write.
        room: usize,
    },
    /// The ring could not be laid out in guest memory.
    #[error("the ring does not fit guest memory")]
    NoMemory,
}

/// Which ring features the queues use: both need the negotiated feature.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingFeatures {
    pub(crate) indirect: bool,
    pub(crate) event_idx: bool,
}

impl Queue {
    pub(crate) fn new(
        transport: &mut VhostUser,
        memory: &Arc<GuestMemory>,
        index: u16,
        features: RingFeatures,
    ) -> Result<Self, QueueError> {
        let RingFeatures { indirect, event_idx } = features;
        let ring = within(memory, || VirtQueue::new(transport, index, indirect, event_idx))
            .map_err(|_| QueueError::NoMemory)?;
        let given = [const { None }; SIZE];
        Ok(Self { ring: ManuallyDrop::new(ring), memory: Arc::clone(memory), given })
    }

    /// Makes a chain available and says by which token it comes back. The device has to be notified: virtio-drivers'
    /// own advice when that can be left out is wrong once the index of an event-index ring has wrapped.
    pub(crate) fn give(&mut self, mut buffers: Buffers) -> Result<u16, QueueError> {
        // One page more than the buffers for the table of an indirect chain.
        let pages = pages_for(buffers.readable.len()) + pages_for(buffers.writable.len()) + 1;
        if !self.memory.has_room(pages) {
            return Err(QueueError::Full);
        }
        let ring = &mut self.ring;
        let token = within(&self.memory, || {
            buffers.parts(|readable, writable| {
                // SAFETY: the ring copies both parts now and touches them next in `pop_used`, which `take` calls with
                // the same boxes: they stay in `given` until then.
                unsafe { ring.add(readable, writable) }
            })
        });
        let token = token.map_err(|_| QueueError::Full)?;
        let slot = self.given.get_mut(usize::from(token)).ok_or(QueueError::NotGiven)?;
        *slot = Some(buffers);
        Ok(token)
    }

    /// The next chain that the device is done with, if there is one.
    pub(crate) fn take(&mut self) -> Result<Option<Used>, QueueError> {
        let Some(token) = self.ring.peek_used() else { return Ok(None) };
        let given = self.given.get_mut(usize::from(token)).and_then(Option::take);
        let mut buffers = given.ok_or(QueueError::NotGiven)?;
        let ring = &mut self.ring;
        let used = within(&self.memory, || {
            buffers.parts(|readable, writable| {
                // SAFETY: these are the buffers that `give` added under this token.
                unsafe { ring.pop_used(token, readable, writable) }
            })
        });
        let used = used.map_err(|_| QueueError::NotGiven)?;
        // The ring has just said from which index on it wants to be called (event index). That must be visible before
        // anyone looks at the used index again and goes to sleep: virtio-drivers stores it without a full barrier.
        fence(Ordering::SeqCst);
        let room = buffers.writable.len();
        match usize::try_from(used) {
            Ok(length) if length <= room => Ok(Some(Used { token, buffers, length })),
            _ => Err(QueueError::TooLong { used, room }),
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: nothing uses `ring` after this.
        within(&self.memory, || unsafe { ManuallyDrop::drop(&mut self.ring) });
    }
}

impl Buffers {
    /// A chain with a part the device reads and a part it writes.
    pub(crate) fn new(readable: &[u8], room: usize) -> Self {
        Self { readable: readable.into(), writable: vec![0; room].into() }
    }

    /// Calls `with` with the parts that are not empty, as the ring wants them.
    fn parts<R>(&mut self, with: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> R) -> R {
        let readable: &[&[u8]] = if self.readable.is_empty() { &[] } else { &[&self.readable] };
        let writable: &mut [&mut [u8]] =
            if self.writable.is_empty() { &mut [] } else { &mut [&mut self.writable] };
        with(readable, writable)
    }
}

impl Used {
    /// What the device wrote.
    pub(crate) fn written(&self) -> &[u8] {
        self.buffers.writable.get(..self.length).unwrap_or_default()
    }

    /// [`Used::written`], for who does not give the buffers back.
    pub(crate) fn into_written(self) -> Vec<u8> {
        let mut bytes = self.buffers.writable.into_vec();
        bytes.truncate(self.length);
        bytes
    }
}
