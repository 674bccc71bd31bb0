// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptor chains, taken from a ring and given back exactly once.

use vhost_user_backend::VringState;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Error as QueueError, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemory, GuestMemoryMmap, Permissions};

use super::ring::Memory;
use std::sync::atomic::Ordering;

/// A ring that breaks the rules of rings, as opposed to one with a chain that breaks those of chains: there is
/// nothing that could be given back, or no place to do so.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the available index is further ahead than the ring is long")]
    AvailableIndex,
    #[error("the available ring names descriptor {head}, of {size}")]
    Head { head: u16, size: u16 },
    #[error("the ring is not in guest memory")]
    Memory,
}

impl From<QueueError> for Broken {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::InvalidAvailRingIndex => Self::AvailableIndex,
            _ => Self::Memory,
        }
    }
}

/// A chain that belongs to the device: it was made available and is not yet used.
///
/// The only way to get rid of one is [`Chain::complete`], which takes it.
#[derive(Debug)]
#[must_use]
pub(super) struct Chain {
    head: u16,
    buffers: Option<Buffers>,
}

/// The buffers of a chain that keeps the rules.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    readable: Vec<Descriptor>,
    writable: Vec<Descriptor>,
    writable_length: usize,
}

impl Chain {
    /// Takes the next available chain.
    pub(super) fn next(
        state: &mut VringState<Memory>,
        memory: &GuestMemoryMmap,
    ) -> Result<Option<Self>, Broken> {
        let queue = state.get_queue_mut();
        let size = queue.size();
        // Read before the iterator reads it again: a driver that makes a chain available in between is no fault.
        if queue.avail_idx(memory, Ordering::Acquire)?.0 == queue.next_avail() {
            return Ok(None);
        }
        let Some(descriptors) = queue.iter(memory)?.next() else { return Err(Broken::Memory) };
        let head = descriptors.head_index();
        if head >= size {
            return Err(Broken::Head { head, size });
        }
        Ok(Some(Self { head, buffers: Buffers::collect(descriptors, size, memory) }))
    }

    /// The buffers, unless the chain breaks the rules.
    pub(super) fn buffers(&self) -> Option<&Buffers> {
        self.buffers.as_ref()
    }

    /// Gives the chain back to the driver, with this many bytes written.
    pub(super) fn complete(
        self,
        state: &mut VringState<Memory>,
        memory: &GuestMemoryMmap,
        used: u32,
    ) -> Result<(), Broken> {
        Ok(state.get_queue_mut().add_used(memory, self.head, used)?)
    }
}

impl Buffers {
    /// Walks the chain once, so that a driver that changes descriptors meanwhile changes nothing here.
    ///
    /// The iterator of virtio-queue ends a chain that breaks the rules early. What tells is the last descriptor that
    /// it gave: it has a successor.
    fn collect(
        descriptors: impl Iterator<Item = Descriptor>,
        size: u16,
        memory: &GuestMemoryMmap,
    ) -> Option<Self> {
        let mut buffers = Self::default();
        let mut complete = false;
        for (index, descriptor) in descriptors.enumerate() {
            // An indirect table may be longer than the ring, the chain in it may not.
            if index >= usize::from(size) {
                return None;
            }
            complete = !descriptor.has_next();
            let length = descriptor.len() as usize;
            let access = if descriptor.is_write_only() { Permissions::Write } else { Permissions::Read };
            if length > 0 && !memory.check_range(descriptor.addr(), length, access) {
                return None;
            }
            if descriptor.is_write_only() {
                buffers.writable_length = buffers.writable_length.checked_add(length)?;
                buffers.writable.push(descriptor);
            } else if buffers.writable.is_empty() {
                buffers.readable.push(descriptor);
            } else {
                return None;
            }
        }
        complete.then_some(buffers)
    }

    /// Length of the device-writable part in bytes.
    pub(super) fn writable_length(&self) -> usize {
        self.writable_length
    }

    /// Whether there is a device-readable part.
    pub(super) fn is_readable(&self) -> bool {
        self.readable.iter().any(|descriptor| descriptor.len() > 0)
    }

    /// The first bytes of the device-readable part, at most `limit` of them. `None` if `memory` is not the one that
    /// the chain was checked against.
    pub(super) fn read(&self, memory: &GuestMemoryMmap, limit: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(limit);
        for descriptor in &self.readable {
            let start = bytes.len();
            let length = (descriptor.len() as usize).min(limit - start);
            bytes.resize(start + length, 0);
            memory.read_slice(&mut bytes[start..], descriptor.addr()).ok()?;
        }
        Some(bytes)
    }

    /// Writes `bytes` from the beginning of the device-writable part on. Returns how many there was room for;
    /// `None` as in [`Buffers::read`].
    pub(super) fn write(&self, memory: &GuestMemoryMmap, mut bytes: &[u8]) -> Option<u32> {
        let mut written = 0;
        for descriptor in &self.writable {
            let (now, rest) = bytes.split_at(bytes.len().min(descriptor.len() as usize));
            memory.write_slice(now, descriptor.addr()).ok()?;
            // At most what the descriptors hold together, which 32 bits hold.
            written += now.len() as u32;
            bytes = rest;
        }
        Some(written)
    }
}
