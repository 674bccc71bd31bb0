// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device whose every word can be twisted on its way out: the real device core over simulated functions, behind a
//! vhost-user transport that is made for that.

use crate::mutation::{Mutation, Twist};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::{io, os::unix::net::UnixStream};
use tempfile::TempDir;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_device_irq::bridge::Bridge;
use vhost_device_irq::device::{Assigned, Quota};
use vhost_device_irq::host::HostFunction;
use vhost_device_irq::host::sim::SimFunction;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringMutex, VringT};
use virtio_irq_conform::{Action, Provoke, ProvokeError};
use virtio_irq_proto::{FunctionFlags, FunctionId, PciIds};
use virtio_queue::QueueT;
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryAtomic, GuestMemoryMmap, Permissions,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};
use zerocopy::IntoBytes;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Id of the sources' interrupts in the worker's epoll instance.
const FIRED: u16 = 4;

/// The functions: the first tells messages only, so that twisting them does not meddle with sources.
const NATIVE_ONLY: u16 = 3;
const EVENT_TOO: [u16; 7] = [5, 6, 9, 12, 20, 21, 40];

/// A device that is served by a thread, with functions whose host the test controls.
pub(crate) struct Double {
    socket: PathBuf,
    host: Host,
    ending: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
    _directory: TempDir,
}

/// What happens on its host.
pub(crate) struct Host {
    functions: Vec<(u16, SimFunction)>,
    /// A failure is due that the device did not see yet.
    failing: Arc<AtomicBool>,
}

impl Double {
    pub(crate) fn start(mutation: Mutation) -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("irq.sock");
        let ids = [NATIVE_ONLY].into_iter().chain(EVENT_TOO);
        let functions: Vec<_> = ids.zip(0..).map(|(id, index)| (id, function(index))).collect();
        let assigned = functions.iter().map(|(id, host)| {
            let boxed: Box<dyn HostFunction> = Box::new(host.clone());
            (assigned(*id, host), boxed)
        });
        let quota = Quota { guest: 256, function: 256 };
        let bridge = Arc::new(Bridge::new(assigned.collect(), quota).unwrap());
        let failing = Arc::new(AtomicBool::new(false));
        let twist = Twist::new(mutation, functions[0].1.clone(), failing.clone());
        let ending = Arc::new(AtomicBool::new(false));
        let (until, listener) = (ending.clone(), Listener::new(&socket, false).unwrap());
        let server = std::thread::spawn(move || {
            serve(&bridge, &Arc::new(Mutex::new(twist)), mutation, listener, &until)
        });
        let host = Host { functions, failing };
        Self { socket, host, ending, server: Some(server), _directory: directory }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        // The server waits for a frontend.
        let _ = UnixStream::connect(&self.socket);
        let ended = self.server.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the double ends well");
        }
    }
}

fn function(index: u16) -> SimFunction {
    let ids = PciIds { vendor: 0x1234, device: 0x100 + index, ..PciIds::default() };
    SimFunction::new("double", ids, 32, 0, index)
}

fn assigned(id: u16, host: &SimFunction) -> Assigned {
    let flags = FunctionFlags::NATIVE
        .with(FunctionFlags::ISOLATED, true)
        .with(FunctionFlags::STABLE, true)
        .with(FunctionFlags::EVENT, id != NATIVE_ONLY);
    Assigned { function: host.describe().function(FunctionId(id), flags), refused: false }
}

impl Provoke for Host {
    fn provoke(&self, action: Action) -> Result<(), ProvokeError> {
        let named = |id: u16| {
            let found = self.functions.iter().find(|(known, _)| *known == id);
            found.map(|(_, host)| host).ok_or(ProvokeError::Impossible(action))
        };
        match action {
            Action::Raise { function, vector } => {
                named(function)?.fire(vector);
            }
            Action::Move { function } => named(function)?.move_messages(),
            Action::Take { function } => named(function)?.take_away(),
            Action::Remove { function } => named(function)?.remove(),
            Action::Fail { function } => {
                named(function)?.fail(1);
                self.failing.store(true, Ordering::Release);
            }
        }
        Ok(())
    }
}

fn serve(
    bridge: &Arc<Bridge>,
    twist: &Arc<Mutex<Twist>>,
    mutation: Mutation,
    mut listener: Listener,
    ending: &AtomicBool,
) {
    loop {
        let memory = Memory::new(GuestMemoryMmap::new());
        let session = Arc::new(Session {
            bridge: bridge.clone(),
            twist: twist.clone(),
            mutation,
            memory: memory.clone(),
            state: Mutex::new(State::default()),
            exit: Mutex::new(Some(
                new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).unwrap(),
            )),
        });
        let mut daemon = VhostUserDaemon::new("double".to_owned(), session, memory).unwrap();
        for worker in daemon.get_epoll_handlers() {
            let fired = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(bridge.deliveries()));
            worker.register_listener(fired, EventSet::IN, u64::from(FIRED)).unwrap();
        }
        daemon.start(&mut listener).unwrap();
        // A frontend that leaves is an error to the library.
        let _ = daemon.wait();
        drop(daemon);
        bridge.reset();
        bridge.device().negotiated(0);
        twist.lock().unwrap().forget();
        if ending.load(Ordering::Acquire) {
            return;
        }
    }
}

struct Session {
    bridge: Arc<Bridge>,
    twist: Arc<Mutex<Twist>>,
    mutation: Mutation,
    memory: Memory,
    state: Mutex<State>,
    exit: Mutex<Option<(EventConsumer, EventNotifier)>>,
}

#[derive(Default)]
struct State {
    /// The queues stopped, and it is not known yet whether for a reset or for a pause.
    stopped: bool,
    /// Queues whose ring is broken.
    broken: [bool; 2],
}

/// The buffers of a chain.
#[derive(Default)]
struct Buffers {
    readable: Vec<(u64, u32)>,
    writable: Vec<(u64, u32)>,
}

impl Buffers {
    /// The chain that begins at `head` of the table, if it is valid.
    fn walk(memory: &GuestMemoryMmap, mut table: u64, size: u16, head: u16) -> Option<Self> {
        let (mut size, mut index, mut indirect) = (u32::from(size), u32::from(head), false);
        let (mut count, most) = (0, size);
        let mut buffers = Self::default();
        loop {
            count += 1;
            if index >= size || count > most {
                return None;
            }
            let mut raw = [0; 16];
            memory.read_slice(&mut raw, GuestAddress(table + 16 * u64::from(index))).ok()?;
            let addr = u64::from_le_bytes(raw[..8].try_into().ok()?);
            let len = u32::from_le_bytes(raw[8..12].try_into().ok()?);
            let flags = u16::from_le_bytes([raw[12], raw[13]]);
            if flags & 4 != 0 {
                if indirect || len == 0 || len % 16 != 0 {
                    return None;
                }
                (table, size, index, indirect, count) = (addr, len / 16, 0, true, 0);
                continue;
            }
            let write = flags & 2 != 0;
            if len > 0 {
                let access = if write { Permissions::Write } else { Permissions::Read };
                if !memory.check_range(GuestAddress(addr), len as usize, access) {
                    return None;
                }
                match (write, buffers.writable.is_empty()) {
                    (true, _) => buffers.writable.push((addr, len)),
                    (false, true) => buffers.readable.push((addr, len)),
                    (false, false) => return None,
                }
            }
            if flags & 1 == 0 {
                return Some(buffers);
            }
            index = u32::from(u16::from_le_bytes([raw[14], raw[15]]));
        }
    }

    fn room(&self) -> usize {
        self.writable.iter().map(|(_, len)| *len as usize).sum()
    }

    fn read(&self, memory: &GuestMemoryMmap, parts: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (addr, len) in self.readable.iter().take(parts) {
            let mut part = vec![0; *len as usize];
            memory.read_slice(&mut part, GuestAddress(*addr)).unwrap();
            bytes.extend(part);
        }
        bytes
    }

    fn write(&self, memory: &GuestMemoryMmap, mut bytes: &[u8]) -> u32 {
        let mut written = 0;
        for (addr, len) in &self.writable {
            let (now, rest) = bytes.split_at(bytes.len().min(*len as usize));
            memory.write_slice(now, GuestAddress(*addr)).unwrap();
            written += now.len() as u32;
            bytes = rest;
        }
        written
    }
}

impl Session {
    fn twist(&self) -> MutexGuard<'_, Twist> {
        self.twist.lock().unwrap()
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == mutation
    }

    /// Takes the next chain that is available, if the ring runs.
    fn take(&self, vring: &VringMutex<Memory>, queue: usize) -> Option<u16> {
        let memory = self.memory.memory();
        let mut vring = vring.get_mut();
        if !vring.is_enabled() || !vring.get_queue().ready() {
            return None;
        }
        let ring = vring.get_queue_mut();
        let mut state = self.state.lock().unwrap();
        let available = ring.avail_idx(&*memory, Ordering::Acquire).unwrap();
        let ahead = available.0.wrapping_sub(ring.next_avail());
        if state.broken[queue] || ahead > ring.size() {
            state.broken[queue] = true;
            return None;
        }
        if ahead == 0 {
            return None;
        }
        let slot = ring.next_avail() % ring.size();
        let head: u16 = memory.read_obj(GuestAddress(ring.avail_ring() + 4 + 2 * u64::from(slot))).unwrap();
        ring.set_next_avail(ring.next_avail().wrapping_add(1));
        Some(u16::from_le(head))
    }

    /// How many chains are available.
    fn available(&self, vring: &VringMutex<Memory>) -> u16 {
        let memory = self.memory.memory();
        let vring = vring.get_ref();
        let ring = vring.get_queue();
        let index = if ring.ready() { ring.avail_idx(&*memory, Ordering::Acquire).ok() } else { None };
        index.map_or(0, |index| index.0.wrapping_sub(ring.next_avail()))
    }

    fn give_back(&self, vring: &VringMutex<Memory>, head: u16, used: u32) {
        let memory = self.memory.memory();
        vring.get_mut().get_queue_mut().add_used(&*memory, head, used).unwrap();
        vring.signal_used_queue().unwrap();
    }

    fn buffers(&self, vring: &VringMutex<Memory>, head: u16) -> Option<Buffers> {
        let memory = self.memory.memory();
        let vring = vring.get_ref();
        let ring = vring.get_queue();
        Buffers::walk(&memory, ring.desc_table(), ring.size(), head)
    }

    fn serve_requests(&self, requests: &VringMutex<Memory>, events: &VringMutex<Memory>) {
        if self.is(Mutation::NeedsTheEventq) && !events.get_ref().get_queue().ready() {
            return;
        }
        let heads: Vec<_> = std::iter::from_fn(|| self.take(requests, 0)).collect();
        for (place, head) in heads.iter().enumerate() {
            // Only of several at once, so that nothing else is touched.
            let last_of_many = heads.len() > 4 && place + 1 == heads.len();
            let used = self.buffers(requests, *head).map_or(0, |buffers| self.answer(&buffers));
            if last_of_many && self.is(Mutation::LosesChains) {
                continue;
            }
            self.give_back(requests, *head, used);
            if last_of_many && self.is(Mutation::ReturnsTwice) {
                self.give_back(requests, *head, used);
            }
            // Where a check looks at single buffers it has fewer.
            if self.is(Mutation::ReturnsEmptyEventBuffers)
                && self.available(events) >= 8
                && let Some(head) = self.take(events, 1)
            {
                self.give_back(events, head, 0);
            }
        }
    }

    fn answer(&self, buffers: &Buffers) -> u32 {
        let memory = self.memory.memory();
        let room = buffers.room();
        if room < 8 {
            return 0;
        }
        if self.is(Mutation::WritesBeforeItReads) {
            buffers.write(&memory, &[0]);
        }
        let parts = if self.is(Mutation::ReadsOneDescriptor) { 1 } else { usize::MAX };
        let request = buffers.read(&memory, parts);
        let reply = self.twist().answer(&self.bridge, &request, room);
        let used = buffers.write(&memory, &reply);
        if self.is(Mutation::OverstatesLength) && request.first() == Some(&1) && reply.len() > 8 {
            return used + 4;
        }
        used
    }

    fn deliver_events(&self, events: &VringMutex<Memory>) {
        let memory = self.memory.memory();
        if self.is(Mutation::UsesABrokenRing) && self.available(events) > 16 {
            self.give_back(events, 0, 0);
        }
        while self.twist().has_events(&self.bridge) {
            let Some(head) = self.take(events, 1) else { break };
            let buffers = self.buffers(events, head).filter(|buffers| buffers.readable.is_empty());
            let Some(buffers) = buffers.filter(|buffers| buffers.room() >= 16) else {
                if self.is(Mutation::DropsEventsAtBadBuffers) {
                    self.twist().events(&self.bridge, 1);
                }
                self.give_back(events, head, 0);
                continue;
            };
            let records = self.twist().events(&self.bridge, buffers.room() / 16);
            let used = buffers.write(&memory, records.as_bytes());
            self.give_back(events, head, used);
        }
    }
}

impl VhostUserBackend for Session {
    type Bitmap = ();
    type Vring = VringMutex<Memory>;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        let ring = 1 << 32 | 1 << 28 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.twist().features(ring | self.bridge.device().features())
    }

    fn acked_features(&self, features: u64) {
        self.bridge.device().negotiated(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        // A device without acknowledgements is to be checked as well.
        let acknowledged = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK;
        if self.is(Mutation::None) { VhostUserProtocolFeatures::CONFIG } else { acknowledged }
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let bytes = self.twist().config(self.bridge.config().as_bytes());
        bytes.into_iter().chain(std::iter::repeat(0)).skip(offset as usize).take(size as usize).collect()
    }

    fn set_config(&self, _offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.twist().written = Some(bytes.to_vec());
        Ok(())
    }

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit.lock().unwrap().take()
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.broken[queue as usize] = false;
        if queue == 0 {
            self.bridge.stop();
            state.stopped = true;
        } else if !state.stopped && self.is(Mutation::TheEventqForgets) {
            self.twist().events(&self.bridge, usize::MAX);
        }
        Ok(())
    }

    fn handle_event(
        &self,
        _event: u16,
        _set: EventSet,
        vrings: &[VringMutex<Memory>],
        _thread: usize,
    ) -> io::Result<()> {
        let [requests, events] = vrings else { return Ok(()) };
        self.bridge.collect();
        let stopped = self.state.lock().unwrap().stopped;
        if stopped {
            let position = |vring: &VringMutex<Memory>| {
                let vring = vring.get_ref();
                (vring.get_queue().ready() && vring.is_enabled()).then(|| vring.get_queue().next_avail())
            };
            let Some(begins) = position(requests) else { return Ok(()) };
            if begins == 0 && position(events).unwrap_or(0) == 0 {
                self.twist().reset(&self.bridge);
            }
            self.state.lock().unwrap().stopped = false;
        }
        self.serve_requests(requests, events);
        self.deliver_events(events);
        Ok(())
    }
}
