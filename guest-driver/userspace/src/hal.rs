// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Gives virtio-drivers' queues the memory of one guest.

use crate::memory::GuestMemory;
use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Arc;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

thread_local! {
    /// Whose memory the functions of [`GuestHal`] work on. They have no receiver, and a process may play several
    /// guests.
    static CURRENT: RefCell<Option<Arc<GuestMemory>>> = const { RefCell::new(None) };
}

/// Runs `work`, which may call into a queue that lies in `memory`.
pub(crate) fn within<R>(memory: &Arc<GuestMemory>, work: impl FnOnce() -> R) -> R {
    struct Restore(Option<Arc<GuestMemory>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }
    let _restore = Restore(CURRENT.replace(Some(Arc::clone(memory))));
    work()
}

fn current<R>(work: impl FnOnce(&GuestMemory) -> R) -> R {
    CURRENT.with_borrow(|memory| match memory {
        Some(memory) => work(memory),
        // Only a bug in this crate gets here: `Queue` makes every call.
        None => panic!("a queue was used outside of its guest's memory"),
    })
}

/// The hardware of the guest, for virtio-drivers.
#[derive(Debug)]
pub(crate) struct GuestHal;

// SAFETY: `dma_alloc` returns pages of the guest's mapping that `GuestMemory` gives to nobody else until they are
// freed, aligned to a page and zeroed. The mapping lives as long as the `GuestMemory`, which `Queue` holds for longer
// than its `VirtQueue`.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let allocated = current(|memory| {
            let address = memory.allocate(pages)?;
            Some((address, memory.user_address(address)?))
        });
        // Address 0 is how the trait says that there is no memory.
        allocated.unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(address: PhysAddr, _mapped: NonNull<u8>, pages: usize) -> i32 {
        current(|memory| memory.free(address, pages));
        0
    }

    unsafe fn mmio_phys_to_virt(_address: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("a vhost-user transport has no registers")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let shared = current(|memory| match direction {
            // SAFETY: the trait's contract: the buffer is valid to read, and nobody writes to it during the call.
            BufferDirection::DriverToDevice => memory.share_readable(unsafe { buffer.as_ref() }),
            BufferDirection::DeviceToDriver => memory.share_writable(buffer.len()),
            BufferDirection::Both => None,
        });
        // `Queue` made sure that there is room, and virtio-drivers shares nothing in both directions.
        shared.unwrap_or_else(|| panic!("no guest memory for a buffer of {} bytes", buffer.len()))
    }

    unsafe fn unshare(address: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        let into = match direction {
            BufferDirection::DriverToDevice => None,
            // SAFETY: the trait's contract: this is the buffer of `share`, valid to write, and nobody else uses it
            // during the call.
            BufferDirection::DeviceToDriver | BufferDirection::Both => Some(unsafe { buffer.as_mut() }),
        };
        current(|memory| memory.unshare(address, into));
    }
}
