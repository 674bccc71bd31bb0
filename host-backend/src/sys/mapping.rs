// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mappings that can vanish.
//!
//! Device memory must be read with loads of the right width, so it has to be mapped. But the kernel takes such a
//! mapping away at any moment: when a driver claims the BAR, or, on a VFIO device, when the guest turns memory
//! decoding off. Guest memory is a file of the VMM's, which can make it shorter. The next access then raises SIGBUS,
//! which would end the process at the will of others. The handler here puts zeros in place of the mapping, so that
//! the access finishes: a reader of device memory learns of it, and a ring of zeros is one with nothing to do.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

/// One reader at a time: the handler knows one window.
static READER: Mutex<()> = Mutex::new(());
/// The mapping that is being read.
static WINDOW: Range = Range::none();
static VANISHED: AtomicBool = AtomicBool::new(false);
/// Guest memory, as many regions at one time as vhost-user has.
const REGIONS: usize = 32;
/// Each of the two threads that serve a guest can still use another memory than the frontend shows now or has shown last.
static GUEST: [Range; 4 * REGIONS] = [const { Range::none() }; 4 * REGIONS];

/// Addresses of a mapping, for a signal handler. Empty where both are 0.
struct Range {
    start: AtomicUsize,
    end: AtomicUsize,
}

impl Range {
    const fn none() -> Self {
        Self { start: AtomicUsize::new(0), end: AtomicUsize::new(0) }
    }

    /// The start goes last in and first out, so that the range is whole whenever it has one.
    fn set(&self, start: usize, length: usize) {
        self.start.store(0, SeqCst);
        self.end.store(start + length, SeqCst);
        self.start.store(start, SeqCst);
    }

    fn clear(&self) {
        self.start.store(0, SeqCst);
        self.end.store(0, SeqCst);
    }

    fn is_none(&self) -> bool {
        self.start.load(SeqCst) == 0
    }

    fn contains(&self, address: usize) -> bool {
        let start = self.start.load(SeqCst);
        start != 0 && (start..self.end.load(SeqCst)).contains(&address)
    }

    /// Maps zeros over the range. Callable in a signal handler: mmap is a bare system call.
    ///
    /// # Safety
    /// The range is a mapping that is accessed through raw pointers only.
    unsafe fn replace(&self, protection: libc::c_int) -> bool {
        let (start, end) = (self.start.load(SeqCst), self.end.load(SeqCst));
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: the caller says that the range is a mapping without references into it.
        unsafe {
            libc::mmap(start as *mut libc::c_void, end - start, protection, flags, -1, 0) != libc::MAP_FAILED
        }
    }
}

/// Guards mappings of guest memory until it is dropped, which is to be before they are unmapped.
#[derive(Debug, Default)]
pub(crate) struct GuestGuard(Vec<usize>);

impl GuestGuard {
    /// Guards these mappings, address and length, beside those that are guarded.
    ///
    /// # Errors
    /// There are more of them than a frontend may show.
    pub(crate) fn new(regions: impl IntoIterator<Item = (usize, usize)>) -> io::Result<Self> {
        let _reader = READER.lock().unwrap_or_else(PoisonError::into_inner);
        install_handler()?;
        let mut guard = Self::default();
        let mut free = GUEST.iter().enumerate().filter(|(_, range)| range.is_none());
        for (start, length) in regions {
            let place = free.next().filter(|_| guard.0.len() < REGIONS);
            let (index, range) = place.ok_or_else(|| io::Error::other("too many memory regions"))?;
            range.set(start, length);
            guard.0.push(index);
        }
        Ok(guard)
    }
}

impl Drop for GuestGuard {
    fn drop(&mut self) {
        self.0.iter().filter_map(|index| GUEST.get(*index)).for_each(Range::clear);
    }
}

/// Reads 32-bit words of device memory, `offset` bytes into what `file` maps. The offset is a multiple of 4.
///
/// # Errors
/// What `mmap` says; EFAULT if the mapping went away during the reading.
pub(crate) fn read_mapped(file: &File, offset: u64, words: &mut [u32]) -> io::Result<()> {
    let reader = READER.lock().unwrap_or_else(PoisonError::into_inner);
    install_handler()?;
    let page = rustix::param::page_size() as u64;
    let skip = offset % page;
    let length = usize::try_from(skip)
        .ok()
        .and_then(|skip| skip.checked_add(size_of_val(words)))
        .filter(|_| offset.is_multiple_of(4))
        .ok_or(io::ErrorKind::InvalidInput)?;
    let mapping = Mapping::new(file, offset - skip, length)?;
    VANISHED.store(false, SeqCst);
    WINDOW.set(mapping.address as usize, mapping.length);
    for (index, word) in words.iter_mut().enumerate() {
        // SAFETY: the mapping is readable and `length` bytes long, which is `skip` plus 4 for each of the words, and
        // `skip` is a multiple of 4 as `offset` and the page size are, so the address is inside and aligned. The
        // device may change the memory at any time, which a volatile load of an integer allows for. If the mapping
        // is taken away, the handler puts another one in its place before the load continues.
        *word = unsafe { mapping.address.byte_add(skip as usize).cast::<u32>().add(index).read_volatile() };
    }
    WINDOW.clear();
    drop(mapping);
    drop(reader);
    if VANISHED.swap(false, SeqCst) { Err(io::Error::from_raw_os_error(libc::EFAULT)) } else { Ok(()) }
}

struct Mapping {
    address: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    fn new(file: &File, offset: u64, length: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at a place of the kernel's choice touches no memory that the program uses.
        let address = unsafe {
            libc::mmap(ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), offset)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the range that mmap returned, or what the handler put in its place, and no reference into
        // it exists: it is only ever read through the raw address.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

fn install_handler() -> io::Result<()> {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if INSTALLED.load(SeqCst) {
        return Ok(());
    }
    // SAFETY: all-zero bytes are a valid sigaction (no flags, SIG_DFL, empty mask); the handler has the signature
    // that SA_SIGINFO promises and calls only what is safe in a signal handler. READER is held, so nobody else
    // installs at the same time.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    INSTALLED.store(true, SeqCst);
    Ok(())
}

extern "C" fn on_bus_error(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo, and for SIGBUS it has the address.
    let fault = unsafe { (*info).si_addr() } as usize;
    if WINDOW.contains(fault) {
        // SAFETY: the window is a mapping of `read_mapped`, which is in its loop and reads it through a raw pointer.
        if unsafe { WINDOW.replace(libc::PROT_READ) } {
            VANISHED.store(true, SeqCst);
            return;
        }
    }
    for range in &GUEST {
        // SAFETY: vm-memory has guest memory mapped there and accesses it through raw pointers only, since the guest
        // accesses it as well.
        if range.contains(fault) && unsafe { range.replace(libc::PROT_READ | libc::PROT_WRITE) } {
            return;
        }
    }
    // Not ours: the access is done again, and this time ends the process as if nobody had handled the signal.
    // SAFETY: SIG_DFL is valid for SIGBUS; sigaction's one-argument form is safe in a signal handler.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn reads_words_beyond_the_first_page() {
        let file = file(&[0; 8192]);
        file.write_all_at(&[1, 0, 0, 0, 2, 0, 0, 0x80], 4096 + 0x28).unwrap();
        let mut words = [0; 2];
        read_mapped(&file, 4096 + 0x28, &mut words).unwrap();
        assert_eq!(words, [1, 0x8000_0002]);
    }

    #[test]
    fn a_mapping_that_vanishes_is_an_error_and_the_next_one_works() {
        // A mapping beyond the end of its file faults just as one that was taken away.
        let short = file(&[7; 16]);
        let mut words = [0; 2];
        let error = read_mapped(&short, 8192, &mut words).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        read_mapped(&short, 8, &mut words).unwrap();
        assert_eq!(words, [0x0707_0707; 2]);
    }

    #[test]
    fn an_unaligned_offset_is_refused() {
        assert!(read_mapped(&file(&[0; 64]), 6, &mut [0]).is_err());
    }
}
