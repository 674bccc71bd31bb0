// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's memory: a memfd that both this process and the device map.

use rustix::fs::{MemfdFlags, memfd_create};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::mmap::FromRangesError;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

/// Size of a page of guest memory, the unit of allocation.
pub const PAGE: usize = virtio_drivers::PAGE_SIZE;

/// Guest-physical address at which memory begins. It equals neither the offset in the file nor any address of this
/// process, so that a device that takes one for another reads outside of memory.
const BASE: u64 = 0x4000_0000;

const NAME: &CStr = c"virtio-irq-guest";

/// What device-writable memory is filled with before the device gets it: a byte that it did not write does not look
/// like one that it did.
const POISON: u8 = 0xa5;

/// Memory of one guest.
///
/// Memory of the driver is never shared with the device: buffers are copied into pages that are (`share`) and back
/// (`unshare`), as with a guest whose memory is encrypted. A buffer that nobody unshares never shows what the device
/// wrote.
#[derive(Debug)]
pub struct GuestMemory {
    map: GuestRegionMmap,
    file: FileOffset,
    pages: Mutex<Pages>,
}

/// Why guest memory could not be created.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The memfd could not be created or sized.
    #[error("cannot create {size} bytes of guest memory")]
    Create {
        /// Wanted size in bytes.
        size: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The memfd could not be mapped.
    #[error("cannot map guest memory")]
    Map(#[from] FromRangesError),
}

#[derive(Debug)]
struct Pages {
    taken: Vec<bool>,
    /// Number of pages of the shared buffer that begins at each page; 0 where none does.
    shared: Vec<usize>,
}

impl GuestMemory {
    /// Memory of `size` bytes, a multiple of [`PAGE`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(size: NonZeroUsize) -> Result<Self, MemoryError> {
        let size = size.get();
        let create = |source| MemoryError::Create { size, source };
        let file = memfd_create(NAME, MemfdFlags::CLOEXEC).map_err(|errno| create(errno.into()))?;
        let file = File::from(file);
        let length = u64::try_from(size).map_err(|_| create(io::ErrorKind::InvalidInput.into()))?;
        file.set_len(length).map_err(create)?;
        let file = FileOffset::new(file, 0);
        let map = GuestRegionMmap::from_range(GuestAddress(BASE), size, Some(file.clone()))?;
        let pages = Pages { taken: vec![false; size / PAGE], shared: vec![0; size / PAGE] };
        Ok(Self { map, file, pages: Mutex::new(pages) })
    }

    /// The entry of this memory in a vhost-user memory table.
    pub fn region(&self) -> Result<VhostUserMemoryRegionInfo, GuestMemoryError> {
        let user = self.map.get_host_address(MemoryRegionAddress(0))?;
        Ok(VhostUserMemoryRegionInfo {
            guest_phys_addr: BASE,
            memory_size: (self.pages().taken.len() * PAGE) as u64,
            userspace_addr: user as u64,
            mmap_offset: 0,
            mmap_handle: self.as_raw_fd(),
        })
    }

    /// Where this process maps a guest-physical address; vhost-user names rings by it.
    pub fn user_address(&self, address: u64) -> Option<NonNull<u8>> {
        NonNull::new(self.map.get_host_address(offset(address)?).ok()?)
    }

    /// Number of pages that are in use, by rings or by shared buffers.
    pub fn pages_in_use(&self) -> usize {
        self.pages().taken.iter().filter(|taken| **taken).count()
    }

    /// Whether buffers that need this many pages together can be shared now.
    pub(crate) fn has_room(&self, pages: usize) -> bool {
        self.pages().find(pages).is_some()
    }

    /// Takes zeroed pages out of memory; `None` if no run of that length is free.
    pub(crate) fn allocate(&self, pages: usize) -> Option<u64> {
        let first = self.pages().take(pages)?;
        self.fill(first, &[0; PAGE], pages * PAGE);
        Some(first)
    }

    /// Gives back pages of [`GuestMemory::allocate`].
    pub(crate) fn free(&self, address: u64, pages: usize) {
        self.pages().give(address, pages);
    }

    /// Makes a copy of `content` that the device can read.
    pub(crate) fn share_readable(&self, content: &[u8]) -> Option<u64> {
        let address = self.share(content.len())?;
        self.map.write_slice(content, offset(address)?).ok()?;
        Some(address)
    }

    /// Makes room of `length` bytes that the device can write.
    pub(crate) fn share_writable(&self, length: usize) -> Option<u64> {
        let address = self.share(length)?;
        self.fill(address, &[POISON; PAGE], length);
        Some(address)
    }

    /// Ends the sharing of a buffer; where the device could write to it, `into` gets what is there now.
    pub(crate) fn unshare(&self, address: u64, into: Option<&mut [u8]>) {
        let count = self.pages().end_sharing(address);
        // Only a bug in this crate gets here: the address never comes from the device.
        let count = count.unwrap_or_else(|| panic!("{address:#x} is not shared"));
        if let Some(into) = into {
            let read = offset(address).map(|at| self.map.read_slice(into, at));
            debug_assert!(matches!(read, Some(Ok(()))), "a shared buffer lies in guest memory");
        }
        self.pages().give(address, count);
    }

    /// Takes back every buffer that is still shared. Only for a device that is stopped.
    pub(crate) fn unshare_all(&self) {
        let mut pages = self.pages();
        for first in 0..pages.shared.len() {
            let count = std::mem::take(&mut pages.shared[first]);
            pages.taken[first..first + count].fill(false);
        }
    }

    fn share(&self, length: usize) -> Option<u64> {
        let count = pages_for(length);
        let mut pages = self.pages();
        let address = pages.take(count)?;
        let first = Pages::index(address)?;
        *pages.shared.get_mut(first)? = count;
        Some(address)
    }

    fn fill(&self, address: u64, page: &[u8; PAGE], length: usize) {
        for start in (0..length).step_by(PAGE) {
            let part = &page[..PAGE.min(length - start)];
            let filled = offset(address + start as u64).map(|at| self.map.write_slice(part, at));
            debug_assert!(matches!(filled, Some(Ok(()))), "allocated pages lie in guest memory");
        }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsRawFd for GuestMemory {
    fn as_raw_fd(&self) -> RawFd {
        self.file.file().as_raw_fd()
    }
}

impl Pages {
    fn find(&self, count: usize) -> Option<usize> {
        let mut run = 0;
        for (index, taken) in self.taken.iter().enumerate() {
            run = if *taken { 0 } else { run + 1 };
            if run == count {
                return Some(index + 1 - count);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<u64> {
        let first = self.find(count)?;
        self.taken[first..first + count].fill(true);
        Some(BASE + (first * PAGE) as u64)
    }

    fn give(&mut self, address: u64, count: usize) {
        if let Some(first) = Self::index(address) {
            self.taken[first..first + count].fill(false);
        }
    }

    /// Number of pages of the buffer that is shared at this address, from now on no more.
    fn end_sharing(&mut self, address: u64) -> Option<usize> {
        let count = self.shared.get_mut(Self::index(address)?)?;
        Some(std::mem::take(count)).filter(|count| *count > 0)
    }

    fn index(address: u64) -> Option<usize> {
        usize::try_from(offset(address)?.0).ok().map(|offset| offset / PAGE)
    }
}

/// Where in the mapping a guest-physical address lies.
fn offset(address: u64) -> Option<MemoryRegionAddress> {
    address.checked_sub(BASE).map(MemoryRegionAddress)
}

/// Number of pages that a buffer takes.
pub(crate) fn pages_for(length: usize) -> usize {
    length.div_ceil(PAGE).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(pages: usize) -> GuestMemory {
        GuestMemory::new(NonZeroUsize::new(pages * PAGE).unwrap()).unwrap()
    }

    #[test]
    fn what_the_device_writes_is_seen_only_after_unshare() {
        let memory = memory(4);
        let mut buffer = [1_u8; 5];
        let address = memory.share_writable(buffer.len()).unwrap();
        memory.map.write_slice(&[7; 3], offset(address).unwrap()).unwrap();
        assert_eq!(buffer, [1; 5]);
        memory.unshare(address, Some(&mut buffer));
        assert_eq!(buffer, [7, 7, 7, POISON, POISON]);
        assert_eq!(memory.pages_in_use(), 0);
    }

    #[test]
    fn pages_are_given_out_once_and_again_after_they_came_back() {
        let memory = memory(4);
        let rings = memory.allocate(2).unwrap();
        let buffer = memory.share_readable(&[9; PAGE + 1]).unwrap();
        assert_eq!((rings, buffer), (BASE, BASE + 2 * PAGE as u64));
        assert!(!memory.has_room(1));
        assert_eq!(memory.share_readable(&[9]), None);
        memory.unshare(buffer, None);
        assert!(memory.has_room(2) && !memory.has_room(3));
        assert_eq!(memory.share_writable(1), Some(buffer));
        memory.unshare_all();
        assert_eq!(memory.pages_in_use(), 2);
        memory.free(rings, 2);
        assert!(memory.has_room(4));
    }

    #[test]
    #[should_panic(expected = "is not shared")]
    fn unsharing_twice_is_a_bug() {
        let memory = memory(1);
        let buffer = memory.share_readable(&[1]).unwrap();
        memory.unshare(buffer, None);
        memory.unshare(buffer, None);
    }

    #[test]
    fn an_address_outside_of_memory_is_mapped_nowhere() {
        let memory = memory(2);
        assert!(memory.user_address(BASE + PAGE as u64).is_some());
        assert_eq!(memory.user_address(BASE + 2 * PAGE as u64), None);
        assert_eq!(memory.user_address(0), None);
    }
}
