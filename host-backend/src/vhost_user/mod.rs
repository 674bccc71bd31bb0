// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vhost-user side: the only code that knows vhost-user and vrings.

mod chain;
mod interrupts;
mod ring;

pub use ring::Ring;

use crate::bridge::Bridge;
use crate::counters::Frontend;
use crate::device::Device;
use crate::rate::Limited;
use crate::sys;
use chain::{Broken, Chain};
use ring::Memory;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use tracing::{info, warn};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringState};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
};
use virtio_irq_proto::{EVENT_QUEUE, QUEUE_COUNT, REQUEST_QUEUE};
use virtio_queue::QueueT;
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use zerocopy::IntoBytes;

/// Greatest size of a ring: QEMU's own limit.
const MAX_QUEUE_SIZE: usize = 1024;

/// Number of chains that one wakeup completes. A driver that refills its ring as fast as it is emptied must not keep
/// the worker from the other queue, nor from leaving.
const CHAINS_PER_WAKEUP: usize = 64;

/// Id of [`Session::again`] in the worker's epoll instance: the ids up to the number of queues are the library's.
const AGAIN: u16 = QUEUE_COUNT + 1;

/// Id of [`Bridge::lookout`] there.
const LOOKOUT: u16 = QUEUE_COUNT + 2;

/// Id of the doorbell of [`Bridge`]'s observer there.
const DOORBELL: u16 = QUEUE_COUNT + 3;

/// One frontend's time with the device.
#[derive(Debug)]
pub struct Session {
    bridge: Arc<Bridge>,
    /// What the frontend shows now. Not the library's, which shows it before it is guarded.
    memory: Mutex<Arc<Shown>>,
    /// As the library hands them to the worker.
    rings: OnceLock<[Ring; 2]>,
    /// What the worker waits at.
    epoll: OnceLock<OwnedFd>,
    /// The thread of [`interrupts`], and that it is to end.
    interrupts: Mutex<Option<JoinHandle<()>>>,
    ending: AtomicBool,
    /// It found no buffer for an event, and asked the driver to say when there is one.
    starving: AtomicBool,
    /// Wakes the worker for what it left when it had done enough.
    again: EventFd,
    /// What ends the worker, until the library takes it.
    exit: Mutex<Option<(EventConsumer, EventNotifier)>>,
    /// The consumer's descriptor, which the library leaves open when it is done with it.
    exit_fd: RawFd,
    /// How often the queues stopped.
    stops: AtomicU64,
    /// Up to which of the stops it is known whether that was a reset or a pause.
    understood: AtomicU64,
    /// A guest decides how often its rings are faulty.
    complaints: Limited,
}

/// Guest memory. Whoever uses it holds it, whatever the frontend shows meanwhile.
#[derive(Debug, Default)]
struct Shown {
    /// Goes first.
    _guard: sys::GuestGuard,
    map: GuestMemoryMmap,
}

/// How far a ring was worked off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// There is nothing left to do, and the driver will say when there is.
    Done,
    /// There may be more to do.
    More,
}

/// What one look at a ring came to.
enum Look {
    /// A chain was completed.
    Completed,
    /// A chain was completed, and no further one is wanted.
    CompletedTheLast,
    /// No chain is available.
    Empty,
    /// No chain is wanted.
    Enough,
}

impl Session {
    /// A session, and the daemon of vhost-user-backend that runs it. Nothing is connected yet.
    ///
    /// # Errors
    /// The process is out of descriptors, threads or memory.
    pub fn new(bridge: Arc<Bridge>) -> io::Result<(Arc<Self>, VhostUserDaemon<Arc<Self>>)> {
        let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        let session = Arc::new(Self {
            bridge,
            memory: Mutex::default(),
            rings: OnceLock::new(),
            epoll: OnceLock::new(),
            interrupts: Mutex::default(),
            ending: AtomicBool::new(false),
            starving: AtomicBool::new(false),
            again: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            exit_fd: exit.0.as_raw_fd(),
            exit: Mutex::new(Some(exit)),
            stops: AtomicU64::new(0),
            understood: AtomicU64::new(0),
            complaints: Limited::new(),
        });
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let daemon = VhostUserDaemon::new("frontend".to_owned(), session.clone(), memory)
            .map_err(|error| io::Error::other(error.to_string()))?;
        for worker in daemon.get_epoll_handlers() {
            // There is one worker.
            let _ = session.epoll.set(sys::borrow(worker.as_ref()).try_clone_to_owned()?);
            worker.register_listener(session.again.as_raw_fd(), EventSet::IN, u64::from(AGAIN))?;
            let lookout = session.bridge.lookout().as_fd().as_raw_fd();
            worker.register_listener(lookout, EventSet::IN, u64::from(LOOKOUT))?;
            if let Some(doorbell) = session.bridge.doorbell() {
                worker.register_listener(doorbell.as_raw_fd(), EventSet::IN, u64::from(DOORBELL))?;
            }
        }
        Self::start_interrupts(&session)?;
        Ok((session, daemon))
    }

    /// Ends the session of a frontend that left: waits for the worker, and forgets the guest.
    pub fn end(session: Arc<Self>, daemon: VhostUserDaemon<Arc<Self>>) {
        session.end_interrupts();
        drop(daemon);
        session.bridge.frontend_left();
        session.bridge.reset();
        session.bridge.device().negotiated(0);
        session.bridge.counters().frontend_is(Frontend::None);
    }

    fn shown(&self) -> Arc<Shown> {
        // Every change is one assignment.
        Arc::clone(&self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Works off a ring as far as one wakeup goes. `serve` looks for a chain and gives it back. `None` for a ring that does
    /// not run.
    fn work_off(
        &self,
        ring: &Ring,
        mut serve: impl FnMut(&mut VringState<Memory>, &GuestMemoryMmap) -> Result<Look, Broken>,
    ) -> Option<Progress> {
        let mut state = ring.running()?;
        let shown = self.shown();
        let memory = &shown.map;
        let mut budget = CHAINS_PER_WAKEUP;
        let mut last = false;
        let result = (|| -> Result<Progress, Broken> {
            state.get_queue_mut().disable_notification(memory)?;
            while budget > 0 && !last {
                match serve(&mut state, memory)? {
                    Look::Completed => budget -= 1,
                    Look::CompletedTheLast => (budget, last) = (budget - 1, true),
                    // A ring full of buffers is no work for a device that has nothing to say.
                    Look::Enough => return Ok(Progress::Done),
                    Look::Empty if !state.get_queue_mut().enable_notification(memory)? => {
                        return Ok(Progress::Done);
                    }
                    Look::Empty => {}
                }
            }
            Ok(if last { Progress::Done } else { Progress::More })
        })();
        // What was completed before a fault is the driver's, who may wait for it.
        if budget < CHAINS_PER_WAKEUP && wants_notification(&mut state, memory) {
            ring.notify(&state);
        }
        Some(result.unwrap_or_else(|broken| {
            if ring.set_faulty() {
                self.complaints
                    .run(|| warn!("the guest's ring is left alone until it is set up again: {broken}"));
            }
            Progress::Done
        }))
    }

    /// Finds out what the queues were stopped for, once the request queue is enabled again: a driver that reset the
    /// device begins at index 0, one that was paused goes on where it was. Returns whether it is known.
    ///
    /// The index has 16 bits, so a pause after a multiple of 65,536 requests looks like a reset, unless the event queue
    /// says otherwise. Nobody but the driver could tell these apart.
    fn resume(&self, requests: &Ring, events: &Ring) -> bool {
        let stops = self.stops.load(Ordering::Acquire);
        if stops != self.understood.load(Ordering::Relaxed) {
            // QEMU enables rings when all of them are set up.
            let Some(position) = requests.position().filter(|_| requests.is_enabled()) else { return false };
            if position == 0 && events.position().unwrap_or(0) == 0 {
                self.bridge.reset();
            } else {
                self.complaints.run(|| info!("the guest's driver goes on after a pause"));
            }
            self.understood.store(stops, Ordering::Relaxed);
        }
        true
    }

    /// To be asked with the lock of a ring held, so that the ring cannot belong to another run of the driver than the
    /// answer.
    fn is_stopped(&self) -> bool {
        self.stops.load(Ordering::Acquire) != self.understood.load(Ordering::Relaxed)
    }

    fn serve_requests(&self, ring: &Ring) -> Progress {
        let progress = self.work_off(ring, |state, memory| {
            if self.is_stopped() {
                return Ok(Look::Enough);
            }
            let Some(chain) = Chain::next(state, memory)? else { return Ok(Look::Empty) };
            self.serve(chain, state, memory)?;
            Ok(Look::Completed)
        });
        progress.unwrap_or(Progress::Done)
    }

    fn serve(
        &self,
        chain: Chain,
        state: &mut VringState<Memory>,
        memory: &GuestMemoryMmap,
    ) -> Result<(), Broken> {
        let request = chain.buffers().and_then(|buffers| {
            Some((buffers.read(memory, Device::READABLE_LIMIT)?, buffers.writable_length()))
        });
        let Some((request, room)) = request else { return chain.complete(state, memory, 0) };
        self.bridge.answer_with(&request, room, |reply| {
            let used = chain.buffers().and_then(|buffers| buffers.write(memory, reply.bytes())).unwrap_or(0);
            chain.complete(state, memory, used)
        })
    }

    fn wake_again(&self) {
        // It fails only if the counter is full, and then the worker wakes anyway.
        let _ = self.again.write(1);
    }
}

/// Also of one that could not be made whole, so that trying again and again does not end in having no descriptors at all.
impl Drop for Session {
    fn drop(&mut self) {
        if self.exit.get_mut().unwrap_or_else(PoisonError::into_inner).is_none() {
            sys::close_abandoned(self.exit_fd);
        }
    }
}

/// Whether the driver wants to hear of what was completed. Where that cannot be read, it does.
fn wants_notification(state: &mut VringState<Memory>, memory: &GuestMemoryMmap) -> bool {
    if state.get_queue().event_idx_enabled() {
        return state.get_queue_mut().needs_notification(memory).unwrap_or(true);
    }
    // The completion must be seen before the driver's wish is read, or a driver that wakes up in between is forgotten.
    fence(Ordering::SeqCst);
    // virtio-queue leaves the other way of suppression, the flags of the available ring, to its user.
    let flags = memory.load::<u16>(GuestAddress(state.get_queue().avail_ring()), Ordering::Acquire);
    flags.map_or(true, |flags| u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

/// Whether the file of a region is as long as the region. Devices such as persistent memory have no length.
fn is_backed(region: &GuestRegionMmap) -> bool {
    region.file_offset().is_none_or(|file| {
        let end = file.start().checked_add(region.len());
        let holds = |length| end.is_some_and(|end| end <= length);
        file.file().metadata().is_ok_and(|metadata| !metadata.is_file() || holds(metadata.len()))
    })
}

impl VhostUserBackend for Session {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        usize::from(QUEUE_COUNT)
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        // By now a VMM has its other sockets.
        self.bridge.attend();
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
            | self.bridge.device().features()
    }

    fn acked_features(&self, features: u64) {
        // By now firmware has numbered the buses.
        self.bridge.attend();
        self.bridge.device().negotiated(features);
    }

    /// Nothing else: the vhost crate has no handler for STATUS and drops the connection, on which QEMU aborts.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {}

    /// Bytes beyond the configuration space are zeros, so that a later, longer one can be told from this one.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.bridge.config();
        let bytes = config.as_bytes().iter().copied().chain(std::iter::repeat(0));
        bytes.skip(offset as usize).take(size as usize).collect()
    }

    /// The space is read-only; the device ignores writes.
    fn set_config(&self, _offset: u32, _buf: &[u8]) -> io::Result<()> {
        Ok(())
    }

    /// The library maps what it is told to. A mapping that goes beyond its file would end the process with SIGBUS at
    /// the first look at it, so such memory is not used, and the frontend is disconnected.
    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let map = GuestMemoryMmap::clone(&memory.memory());
        if !map.iter().all(is_backed) {
            let what = "a memory region is larger than its file";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        // It can be made shorter later, which then is the VMM's loss and not the daemon's.
        let regions = map.iter().map(|region| (region.as_ptr() as usize, region.size()));
        let shown = Arc::new(Shown { _guard: sys::GuestGuard::new(regions)?, map });
        let earlier =
            std::mem::replace(&mut *self.memory.lock().unwrap_or_else(PoisonError::into_inner), shown);
        drop(earlier);
        Ok(())
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// GET_VRING_BASE: the driver reset the device or left, or the VM is paused. Nothing tells these apart before the
    /// queues start again.
    fn stop_vring(&self, queue_index: u32) -> io::Result<()> {
        if queue_index == u32::from(REQUEST_QUEUE) {
            self.complaints.run(|| info!("the guest's driver stopped, or the VM is paused"));
            self.bridge.stop();
            self.bridge.counters().frontend_is(Frontend::Stopped);
            // After this queue came down, which waited for the worker, and before any comes up again.
            self.stops.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    /// Never fails: the library's worker would end, and say nothing.
    fn handle_event(
        &self,
        device_event: u16,
        _evset: EventSet,
        vrings: &[Ring],
        _thread_id: usize,
    ) -> io::Result<()> {
        let [requests, events] = vrings else { return Ok(()) };
        self.rings.get_or_init(|| [requests.clone(), events.clone()]);
        events.tell_kicks(|| self.bridge.deliveries().bells());
        if let (Some(ring), Some(epoll)) = (vrings.get(usize::from(device_event)), self.epoll.get()) {
            ring.watch_edges(epoll.as_fd(), device_event);
        }
        match device_event {
            AGAIN => drop(self.again.read()),
            DOORBELL => self.bridge.show(),
            _ => {}
        }
        if device_event == LOOKOUT {
            self.bridge.look_after();
        }
        let was_stopped = self.is_stopped();
        if was_stopped && !self.resume(requests, events) {
            return Ok(());
        }
        let counters = self.bridge.counters();
        if counters.frontend() != Frontend::Running && requests.is_enabled() {
            counters.frontend_is(Frontend::Running);
        }
        if (was_stopped || matches!(device_event, REQUEST_QUEUE | AGAIN))
            && self.serve_requests(requests) == Progress::More
        {
            self.wake_again();
        }
        self.tell_events(was_stopped || device_event == EVENT_QUEUE);
        Ok(())
    }
}
