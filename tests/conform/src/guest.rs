// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that lays its rings out byte by byte, by the rules or against them.

use crate::PATIENCE;
use crate::link::{Link, LinkError, Region};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};
use vhost::vhost_user::message::FrontendReq;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_INDIRECT_DESC, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};
use virtio_irq_proto::{EVENT_QUEUE, F_NATIVE, REQUEST_QUEUE};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Guest-physical address of the first byte of memory.
pub const RAM: u64 = 0x10_0000;
/// Size of memory in bytes: the reply to the longest request that there is fits.
pub const RAM_SIZE: u64 = 0x40_0000;
/// Where requests and replies lie: everything below belongs to rings.
pub const DATA: u64 = RAM + 0x2_0000;
/// Where replies lie.
pub const REPLY: u64 = DATA + 0x1_0000;
/// What memory that the device may write is filled with.
pub const POISON: u8 = 0xa5;
/// Descriptor flag: another one follows.
pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// Descriptor flag: the device writes.
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// Descriptor flag: the descriptor is a table.
pub const INDIRECT: u16 = virtio_bindings::bindings::virtio_ring::VRING_DESC_F_INDIRECT as u16;
/// The features that a driver of this device takes.
pub const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << F_NATIVE;

const RING_STRIDE: u64 = 0x8000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x5000;

/// A descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Flags; [`Guest::chain`] adds [`NEXT`] by itself.
    pub flags: u16,
    /// Index of the next one.
    pub next: u16,
}

/// Guest memory that a daemon can map.
#[derive(Debug)]
pub struct Ram {
    map: GuestMemoryMmap,
    file: FileOffset,
}

/// A guest with memory and two queues.
#[derive(Debug)]
pub struct Guest {
    /// Its vhost-user connection.
    pub link: Link,
    /// Its memory.
    pub ram: Ram,
    queues: [Queue; 2],
}

#[derive(Debug)]
struct Queue {
    size: u16,
    kick: EventFd,
    call: EventFd,
    available: u16,
    used: u16,
}

impl Desc {
    /// A part that the device reads.
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: 0, next: 0 }
    }

    /// A part that the device writes.
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: WRITE, next: 0 }
    }

    /// As it lies in memory.
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

impl Ram {
    /// Memory at [`RAM`], of [`RAM_SIZE`] bytes.
    pub fn new() -> Self {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd can be made"));
        file.set_len(RAM_SIZE).expect("a memfd can grow");
        let file = FileOffset::new(file, 0);
        let range = (GuestAddress(RAM), RAM_SIZE as usize, Some(file.clone()));
        let map = GuestMemoryMmap::from_ranges_with_files([range]).expect("a memfd can be mapped");
        Self { map, file }
    }

    /// Its entry in a memory table.
    pub fn region(&self) -> Region {
        Region {
            guest: RAM,
            size: RAM_SIZE,
            user: self.user(RAM),
            offset: 0,
            fd: self.file.file().as_raw_fd(),
        }
    }

    /// Where this process has a guest-physical address.
    pub fn user(&self, address: u64) -> u64 {
        self.map.get_host_address(GuestAddress(address)).expect("an address in memory") as u64
    }

    /// Writes bytes.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.map.write_slice(bytes, GuestAddress(address)).expect("an address in memory");
    }

    /// Reads bytes.
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.map.read_slice(&mut bytes, GuestAddress(address)).expect("an address in memory");
        bytes
    }

    fn load(&self, address: u64) -> u16 {
        self.map
            .load(GuestAddress(address), std::sync::atomic::Ordering::Acquire)
            .expect("an address in memory")
    }

    fn store(&self, address: u64, value: u16) {
        let order = std::sync::atomic::Ordering::Release;
        self.map.store(value, GuestAddress(address), order).expect("an address in memory");
    }
}

impl Default for Ram {
    fn default() -> Self {
        Self::new()
    }
}

impl Guest {
    /// Connects, agrees on [`FEATURES`] and sets both queues up with 16 entries.
    ///
    /// # Errors
    /// The backend refuses a step.
    pub fn boot(socket: &Path) -> Result<Self, LinkError> {
        Self::boot_with(socket, FEATURES)
    }

    /// [`Guest::boot`] with these features.
    ///
    /// # Errors
    /// The backend refuses a step.
    pub fn boot_with(socket: &Path, features: u64) -> Result<Self, LinkError> {
        let mut link = Link::connect(socket)?;
        link.negotiate(features)?;
        let mut guest = Self::over(link)?;
        guest.set_up(REQUEST_QUEUE, 16)?;
        guest.set_up(EVENT_QUEUE, 16)?;
        Ok(guest)
    }

    /// A guest whose connection is past the negotiation. It has memory, and no queue is set up.
    ///
    /// # Errors
    /// The backend refuses the memory.
    pub fn over(mut link: Link) -> Result<Self, LinkError> {
        let ram = Ram::new();
        link.memory(&[ram.region()])?;
        Ok(Self { link, ram, queues: [Queue::new(), Queue::new()] })
    }

    /// Sets a queue up from scratch.
    ///
    /// # Errors
    /// The backend refuses a step.
    pub fn set_up(&mut self, queue: u16, size: u16) -> Result<(), LinkError> {
        let at = ring(queue);
        self.ram.write(at, &[0; RING_STRIDE as usize]);
        let user = self.ram.user(at);
        self.start(queue, size, [user, user + AVAILABLE, user + USED])
    }

    /// Sets a queue up with its three parts at these addresses of the frontend.
    ///
    /// # Errors
    /// The backend refuses a step.
    pub fn start(&mut self, queue: u16, size: u16, parts: [u64; 3]) -> Result<(), LinkError> {
        self.queues[usize::from(queue)] = Queue { size, ..Queue::new() };
        self.hand_over(queue, 0, parts)
    }

    /// Lets a queue that was [taken down](Guest::take_down) go on where it was, as after a pause.
    ///
    /// # Errors
    /// The backend refuses a step.
    pub fn go_on(&mut self, queue: u16, base: u32) -> Result<(), LinkError> {
        let user = self.ram.user(ring(queue));
        self.hand_over(queue, base, [user, user + AVAILABLE, user + USED])
    }

    fn hand_over(&mut self, queue: u16, base: u32, parts: [u64; 3]) -> Result<(), LinkError> {
        let index = u32::from(queue);
        let state = &mut self.queues[usize::from(queue)];
        self.link.vring(FrontendReq::SET_VRING_NUM, index, u32::from(state.size))?;
        self.link.vring(FrontendReq::SET_VRING_BASE, index, base)?;
        self.link.vring_address(index, parts[0], parts[1], parts[2])?;
        self.link.vring_fd(FrontendReq::SET_VRING_KICK, queue.into(), &state.kick)?;
        self.link.vring_fd(FrontendReq::SET_VRING_CALL, queue.into(), &state.call)?;
        self.link.vring(FrontendReq::SET_VRING_ENABLE, index, 1)
    }

    /// Takes a queue from the device, as at a reset; how many entries of the available ring it took.
    ///
    /// # Errors
    /// The backend refuses.
    pub fn take_down(&mut self, queue: u16) -> Result<u32, LinkError> {
        self.link.vring(FrontendReq::SET_VRING_ENABLE, queue.into(), 0)?;
        self.link.vring_base(queue.into())
    }

    /// Takes both queues down and sets them up again.
    ///
    /// # Errors
    /// The backend refuses a step.
    pub fn reset(&mut self) -> Result<(), LinkError> {
        for queue in [REQUEST_QUEUE, EVENT_QUEUE] {
            self.take_down(queue)?;
        }
        for queue in [REQUEST_QUEUE, EVENT_QUEUE] {
            self.set_up(queue, 16)?;
        }
        Ok(())
    }

    /// Writes an entry of the descriptor table.
    pub fn descriptor(&self, queue: u16, index: u16, desc: Desc) {
        self.ram.write(ring(queue) + 16 * u64::from(index), &desc.bytes());
    }

    /// Makes the chain that begins at this descriptor available.
    pub fn publish(&mut self, queue: u16, head: u16) {
        let state = &mut self.queues[usize::from(queue)];
        let at = ring(queue) + AVAILABLE;
        self.ram.store(at + 4 + 2 * u64::from(state.available % state.size), head);
        state.available = state.available.wrapping_add(1);
        self.ram.store(at + 2, state.available);
    }

    /// Writes any value into the available ring's index.
    pub fn set_available_index(&mut self, queue: u16, index: u16) {
        self.queues[usize::from(queue)].available = index;
        self.ram.store(ring(queue) + AVAILABLE + 2, index);
    }

    /// Notifies the device.
    pub fn kick(&self, queue: u16) {
        self.queues[usize::from(queue)].kick.write(1).expect("an eventfd takes one more");
    }

    /// The eventfd by which the device calls for a queue. The backend keeps reads of it from blocking.
    pub fn call(&self, queue: u16) -> BorrowedFd<'_> {
        let call = self.queues[usize::from(queue)].call.as_raw_fd();
        // SAFETY: the eventfd belongs to `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(call) }
    }

    /// Whether the device wants to be notified of chains, as far as the flags of the used ring say it.
    pub fn wants_kick(&self, queue: u16) -> bool {
        u32::from(self.ram.load(ring(queue) + USED)) & VRING_USED_F_NO_NOTIFY == 0
    }

    /// Lays descriptors out from index 0 on, each linked to the next, makes them available and notifies.
    pub fn chain(&mut self, queue: u16, descs: &[Desc]) {
        for (index, desc) in (0..).zip(descs) {
            let last = usize::from(index) + 1 == descs.len();
            let flags = desc.flags | if last { 0 } else { NEXT };
            self.descriptor(queue, index, Desc { flags, next: index + 1, ..*desc });
        }
        self.publish(queue, 0);
        self.kick(queue);
    }

    /// The next entry of the used ring, if there is one: head and used length.
    pub fn poll_used(&mut self, queue: u16) -> Option<(u32, u32)> {
        let state = &mut self.queues[usize::from(queue)];
        let at = ring(queue) + USED;
        if self.ram.load(at + 2) == state.used {
            return None;
        }
        let entry = self.ram.read(at + 4 + 8 * u64::from(state.used % state.size), 8);
        state.used = state.used.wrapping_add(1);
        let field = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        Some((field(0), field(4)))
    }

    /// Waits for the next entry of the used ring.
    ///
    /// # Panics
    /// None comes.
    pub fn used(&mut self, queue: u16) -> (u32, u32) {
        self.used_within(queue, PATIENCE)
            .unwrap_or_else(|| panic!("the device does not return a chain of queue {queue}"))
    }

    /// Waits for the next entry of the used ring, but not longer than this.
    pub fn used_within(&mut self, queue: u16, patience: Duration) -> Option<(u32, u32)> {
        let deadline = Instant::now() + patience;
        loop {
            // Taken back before looking: a call after this is for something that was not there yet.
            let _ = self.queues[usize::from(queue)].call.read();
            if let Some(entry) = self.poll_used(queue) {
                return Some(entry);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).expect("a short time");
            if poll(&mut [PollFd::new(&self.call(queue), PollFlags::IN)], Some(&timeout)).expect("poll works")
                == 0
            {
                return self.poll_used(queue);
            }
        }
    }

    /// Sends a request in an ordinary chain, with room for a reply, and returns what was written.
    ///
    /// # Panics
    /// The chain does not come back, or more was written than the used length says.
    pub fn ask(&mut self, request: &[u8], room: u32) -> Vec<u8> {
        self.lay_out(request, room);
        let length = u32::try_from(request.len()).expect("a short request");
        self.chain(REQUEST_QUEUE, &[Desc::readable(DATA, length), Desc::writable(REPLY, room)]);
        let (head, used) = self.used(REQUEST_QUEUE);
        assert_eq!(head, 0, "the chain that was made available comes back");
        self.written(room, used)
    }

    /// Puts a request at [`DATA`], and poison at [`REPLY`].
    pub fn lay_out(&self, request: &[u8], room: u32) {
        self.ram.write(DATA, request);
        self.ram.write(REPLY, &vec![POISON; room as usize]);
    }

    /// What the device wrote at [`REPLY`]; everything behind it is untouched.
    ///
    /// # Panics
    /// It is not.
    pub fn written(&self, room: u32, used: u32) -> Vec<u8> {
        assert!(used <= room, "the device wrote {used} bytes where there is room for {room}");
        let mut bytes = self.ram.read(REPLY, room as usize);
        let rest = bytes.split_off(used as usize);
        assert!(rest.iter().all(|byte| *byte == POISON), "bytes beyond the used length {used} were written");
        bytes
    }
}

impl Queue {
    fn new() -> Self {
        let eventfd = || EventFd::new(EFD_NONBLOCK).expect("an eventfd can be made");
        Self { size: 16, kick: eventfd(), call: eventfd(), available: 0, used: 0 }
    }
}

/// Guest-physical address of a queue's descriptor table.
pub fn ring(queue: u16) -> u64 {
    RAM + RING_STRIDE * u64::from(queue)
}
