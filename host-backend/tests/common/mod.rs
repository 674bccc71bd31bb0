// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VM without a CPU: guest memory, two rings in it, and a vhost-user frontend that shows them to the daemon.
//!
//! Everything is raw, so that a test can break any rule of rings.
#![allow(dead_code, unreachable_pub, reason = "every test program uses another part")]

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Nothing here takes this long, unless it never comes.
pub const LONG: Duration = Duration::from_secs(20);

pub const REQUESTS: usize = 0;
pub const EVENTS: usize = 1;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Address, length in bytes, flags and successor of a descriptor.
pub type Descriptor = (u64, u32, u16, u16);

/// Where guest memory begins and how long it is. Not at 0, so that 0 is an address outside of it.
pub const BASE: u64 = 0x10_0000;
pub const MEMORY: usize = 0x20_0000;

/// Number of descriptors of a ring.
pub const SIZE: u16 = 16;

/// A place for buffers, `index` pages in.
pub fn page(index: u64) -> u64 {
    BASE + 0x10_0000 + 0x1000 * index
}

/// The daemon as a process of its own.
pub struct Daemon {
    pub child: Child,
    pub socket: PathBuf,
    pub directory: TempDir,
    pub lines: mpsc::Receiver<String>,
}

pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_vhost-device-irq"))
}

/// The program with these limits of open files, soft and hard, and without the privilege to raise the latter.
pub fn program_with_files(soft: u64, hard: u64) -> Command {
    let mut argv = Vec::new();
    if rustix::process::geteuid().is_root() {
        argv.extend(
            ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"].map(str::to_owned),
        );
    }
    argv.extend(["prlimit".to_owned(), format!("--nofile={soft}:{hard}")]);
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).arg(program().get_program());
    command
}

impl Daemon {
    pub fn start(devices: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("irq.sock");
        let mut command = program();
        command.arg("--socket-path").arg(&socket).stdin(Stdio::null());
        for device in devices {
            command.args(["--device", device]);
        }
        let daemon = Self::spawn(command, directory, socket);
        daemon.wait_for_line("waiting for a frontend");
        daemon
    }

    pub fn spawn(mut command: Command, directory: TempDir, socket: PathBuf) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines() {
                let Ok(line) = line else { return };
                eprintln!("{line}");
                let _ = sender.send(line);
            }
        });
        Self { child, socket, directory, lines }
    }

    /// Waits until the daemon logs a line that has `text` in it.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(LONG) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen.push(line),
                Err(error) => panic!("no line with {text:?}: {error}; there were {seen:#?}"),
            }
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Ends the daemon as an operator does, and expects it to be gone at once and clean.
    #[track_caller]
    pub fn stop(mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "the daemon ended by itself");
        self.signal(rustix::process::Signal::TERM);
        assert_eq!(self.wait().code(), Some(0));
        assert!(!self.socket.exists(), "the socket is removed");
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait_for_exit(&mut self.child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A test that failed leaves it running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a process, as long as is reasonable.
#[track_caller]
pub fn wait_for_exit(child: &mut Child) -> ExitStatus {
    let pidfd = rustix::process::pidfd_open(
        rustix::process::Pid::from_child(child),
        rustix::process::PidfdFlags::empty(),
    )
    .unwrap();
    assert!(readable(&pidfd, LONG), "the process does not end");
    child.wait().unwrap()
}

pub fn readable(fd: &impl AsFd, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).unwrap();
    // The threads of the daemon get signals.
    rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout))).unwrap() > 0
}

/// A virtual machine whose guest is the test.
pub struct Vm {
    pub memory: GuestMemoryMmap,
    pub frontend: Frontend,
    pub rings: [Ring; 2],
    pub features: u64,
}

/// The driver's side of one ring.
pub struct Ring {
    pub index: usize,
    pub kick: EventFd,
    pub call: EventFd,
    available: u16,
    used: u16,
}

impl Ring {
    fn new(index: usize) -> Self {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self { index, kick: event(), call: event(), available: 0, used: 0 }
    }

    pub fn descriptors(&self) -> u64 {
        BASE + 0x4_0000 * self.index as u64
    }

    pub fn available(&self) -> u64 {
        self.descriptors() + 0x1_0000
    }

    pub fn used(&self) -> u64 {
        self.descriptors() + 0x2_0000
    }
}

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
pub const NATIVE: u64 = 1;

fn new_memory() -> GuestMemoryMmap {
    let memfd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(memfd);
    file.set_len(MEMORY as u64).unwrap();
    let file = Some(FileOffset::new(file, 0));
    GuestMemoryMmap::<()>::from_ranges_with_files([(GuestAddress(BASE), MEMORY, file)]).unwrap()
}

fn show(frontend: &Frontend, memory: &GuestMemoryMmap) {
    let region = memory.iter().next().unwrap();
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: BASE,
        memory_size: MEMORY as u64,
        userspace_addr: region.get_host_address(vm_memory::MemoryRegionAddress(0)).unwrap() as u64,
        mmap_offset: 0,
        mmap_handle: region.file_offset().unwrap().file().as_raw_fd(),
    };
    frontend.set_mem_table(&[region]).unwrap();
}

impl Vm {
    /// Connects, with everything that the daemon offers but EVENT_IDX, and starts both rings.
    pub fn connect(socket: &Path) -> Self {
        let mut vm = Self::prepare(socket, !EVENT_IDX);
        vm.start_rings();
        vm
    }

    /// As [`Vm::connect`], with a request ring whose indexes begin at `base`.
    pub fn connect_at(socket: &Path, base: u16) -> Self {
        let mut vm = Self::prepare(socket, !EVENT_IDX);
        let ring = &mut vm.rings[REQUESTS];
        (ring.available, ring.used) = (base, base);
        let (descriptors, available, used) = (ring.descriptors(), ring.available(), ring.used());
        for index in [available, used] {
            vm.write(index + 2, &base.to_le_bytes());
        }
        vm.set_up_from(base, REQUESTS, SIZE, descriptors, available, used);
        vm.enable(REQUESTS, true);
        vm.start_ring(EVENTS);
        vm
    }

    /// Connects and shares the memory; no ring is set up.
    pub fn prepare(socket: &Path, wanted: u64) -> Self {
        Self::prepare_over(UnixStream::connect(socket).unwrap(), wanted)
    }

    pub fn prepare_over(stream: UnixStream, wanted: u64) -> Self {
        let memory = new_memory();
        let mut frontend = Frontend::from_stream(stream, 2);
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let features = offered & wanted;
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol & VhostUserProtocolFeatures::all()).unwrap();
        frontend.set_features(features).unwrap();
        show(&frontend, &memory);
        Self { memory, frontend, rings: [Ring::new(0), Ring::new(1)], features }
    }

    /// Shows memory anew, which is empty. Returns the file of what was shown before.
    pub fn show_other_memory(&mut self) -> File {
        let earlier = std::mem::replace(&mut self.memory, new_memory());
        show(&self.frontend, &self.memory);
        earlier.iter().next().unwrap().file_offset().unwrap().file().try_clone().unwrap()
    }

    pub fn host_address(&self, guest: u64) -> u64 {
        self.memory.get_host_address(GuestAddress(guest)).unwrap() as u64
    }

    pub fn start_rings(&mut self) {
        self.start_ring(REQUESTS);
        self.start_ring(EVENTS);
    }

    pub fn start_ring(&mut self, index: usize) {
        let ring = &self.rings[index];
        self.set_up(index, SIZE, ring.descriptors(), ring.available(), ring.used());
    }

    /// Sets a ring up and enables it, as QEMU does: size, base, addresses, kick, call, enable.
    pub fn set_up(&self, index: usize, size: u16, descriptors: u64, available: u64, used: u64) {
        self.set_up_from(0, index, size, descriptors, available, used);
        self.enable(index, true);
    }

    fn set_up_from(&self, base: u16, index: usize, size: u16, descriptors: u64, available: u64, used: u64) {
        let ring = &self.rings[index];
        self.frontend.set_vring_num(index, size).unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        let config = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: self.host_address(BASE) + (descriptors - BASE),
            used_ring_addr: self.host_address(BASE) + (used - BASE),
            avail_ring_addr: self.host_address(BASE) + (available - BASE),
            log_addr: None,
        };
        self.frontend.set_vring_addr(index, &config).unwrap();
        self.frontend.set_vring_kick(index, &ring.kick).unwrap();
        self.frontend.set_vring_call(index, &ring.call).unwrap();
    }

    pub fn enable(&self, index: usize, enable: bool) {
        self.frontend.clone().set_vring_enable(index, enable).unwrap();
    }

    /// Takes a ring down and empties it, as a driver's reset does.
    pub fn stop_ring(&mut self, index: usize) {
        self.frontend.get_vring_base(index).unwrap();
        let ring = &mut self.rings[index];
        (ring.available, ring.used) = (0, 0);
        let (available, used) = (ring.available(), ring.used());
        self.write(available, &[0; 0x100]);
        self.write(used, &[0; 0x200]);
    }

    /// Stops both rings as the pause of a machine does; the memory stays as it is. Returns where they stopped.
    pub fn pause(&mut self) -> [u16; 2] {
        [REQUESTS, EVENTS].map(|index| {
            self.enable(index, false);
            self.frontend.get_vring_base(index).unwrap() as u16
        })
    }

    /// Lets both rings go on where they were, as QEMU does: sets up both, enables and kicks them.
    pub fn go_on(&mut self, bases: [u16; 2]) {
        for (index, base) in bases.into_iter().enumerate() {
            let ring = &self.rings[index];
            self.set_up_from(base, index, SIZE, ring.descriptors(), ring.available(), ring.used());
        }
        for index in [REQUESTS, EVENTS] {
            self.enable(index, true);
            self.kick(index);
        }
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn read_u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.read(address, 2).try_into().unwrap())
    }

    /// Writes descriptor `number` of a table.
    pub fn descriptor(&self, table: u64, number: u16, (address, length, flags, next): Descriptor) {
        let bytes =
            [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()]
                .concat();
        self.write(table + 16 * u64::from(number), &bytes);
    }

    /// Makes chains available and kicks.
    pub fn submit(&mut self, queue: usize, heads: &[u16]) {
        let ring = &mut self.rings[queue];
        let (available, start) = (ring.available(), ring.available);
        ring.available = start.wrapping_add(heads.len() as u16);
        let end = ring.available;
        for (offset, head) in heads.iter().enumerate() {
            let slot = start.wrapping_add(offset as u16) % SIZE;
            self.write(available + 4 + 2 * u64::from(slot), &head.to_le_bytes());
        }
        self.set_available(queue, end);
        self.kick(queue);
    }

    pub fn set_available(&self, queue: usize, index: u16) {
        let address = GuestAddress(self.rings[queue].available() + 2);
        self.memory.store(index.to_le(), address, std::sync::atomic::Ordering::Release).unwrap();
    }

    pub fn kick(&self, queue: usize) {
        self.rings[queue].kick.write(1).unwrap();
    }

    /// The next used element, without waiting.
    pub fn take_used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let (address, seen) = (self.rings[queue].used(), self.rings[queue].used);
        if self.read_u16(address + 2) == seen {
            return None;
        }
        let element = self.read(address + 4 + 8 * u64::from(seen % SIZE), 8);
        self.rings[queue].used = seen.wrapping_add(1);
        let (id, length) = element.split_at(4);
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        Some((word(id) as u16, word(length)))
    }

    /// Waits for the next used element.
    #[track_caller]
    pub fn wait_used(&mut self, queue: usize) -> (u16, u32) {
        loop {
            if let Some(used) = self.take_used(queue) {
                return used;
            }
            let call = self.call(queue);
            assert!(readable(&call, LONG), "queue {queue}: no chain is given back");
            let _ = self.rings[queue].call.read();
        }
    }

    pub fn call(&self, queue: usize) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open as long as its owner, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.rings[queue].call.as_raw_fd()) }
    }

    /// Sends a request in one readable and one writable buffer, and returns what was written.
    #[track_caller]
    pub fn ask(&mut self, request: &[u8], room: u32) -> Vec<u8> {
        self.send(request, room);
        self.reply(room)
    }

    /// The first half of [`Vm::ask`].
    pub fn send(&mut self, request: &[u8], room: u32) {
        let table = self.rings[REQUESTS].descriptors();
        self.write(page(0), request);
        self.write(page(1), &vec![0xee; room as usize]);
        self.descriptor(table, 2, (page(0), request.len() as u32, NEXT, 5));
        self.descriptor(table, 5, (page(1), room, WRITE, 0));
        self.submit(REQUESTS, &[2]);
    }

    /// The second half.
    #[track_caller]
    pub fn reply(&mut self, room: u32) -> Vec<u8> {
        let (head, length) = self.wait_used(REQUESTS);
        assert_eq!(head, 2);
        let written = self.read(page(1), room as usize);
        let (reply, rest) = written.split_at(length as usize);
        assert!(rest.iter().all(|byte| *byte == 0xee), "bytes beyond the used length are untouched");
        reply.to_vec()
    }

    /// A request whose reply is known, to see that the device is well.
    #[track_caller]
    pub fn expect_service(&mut self) {
        let reply = self.ask(&get_messages(0, 1, 5, 1), 32);
        assert_eq!(reply[..18], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x78, 0x05]);
    }
}

pub fn list_functions(start: u16, count: u16) -> Vec<u8> {
    let [s0, s1] = start.to_le_bytes();
    let [c0, c1] = count.to_le_bytes();
    vec![1, 0, 0, 0, 0, 0, 0, 0, s0, s1, c0, c1, 0, 0, 0, 0]
}

/// ALLOCATE: `count` MSI sources of a function, no more and no fewer.
pub fn allocate(function: u16, count: u16) -> Vec<u8> {
    allocate_of(function, 1, 0, count)
}

/// ALLOCATE: `count` sources of a function from vector `first` on, no more and no fewer.
pub fn allocate_of(function: u16, irq_type: u8, first: u16, count: u16) -> Vec<u8> {
    let [f0, f1] = function.to_le_bytes();
    let [v0, v1] = first.to_le_bytes();
    let [c0, c1] = count.to_le_bytes();
    vec![16, 0, 0, 0, 0, 0, 0, 0, f0, f1, irq_type, 0, c0, c1, c0, c1, v0, v1, 1, 0, 0, 0, 0, 0]
}

/// FREE (17), MASK (18) or UNMASK (19).
pub fn sources(kind: u8, first: u32, count: u16) -> Vec<u8> {
    let [s0, s1, s2, s3] = first.to_le_bytes();
    let [c0, c1] = count.to_le_bytes();
    vec![kind, 0, 0, 0, 0, 0, 0, 0, s0, s1, s2, s3, c0, c1, 0, 0]
}

pub fn get_messages(function: u16, irq_type: u8, first: u16, count: u16) -> Vec<u8> {
    let [f0, f1] = function.to_le_bytes();
    let [v0, v1] = first.to_le_bytes();
    let [c0, c1] = count.to_le_bytes();
    vec![2, 0, 0, 0, 0, 0, 0, 0, f0, f1, irq_type, 0, v0, v1, c0, c1]
}

/// Reads whatever comes until the other side closes.
pub fn drain(stream: &mut UnixStream) {
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut sink = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut sink);
}
