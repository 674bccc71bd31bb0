// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vhost-user side: what QEMU says to a backend, in QEMU's order, with a limit on every wait.

use crate::memory::{GuestMemory, MemoryError};
use crate::watchdog::Watchdog;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::{VhostBackend, VringConfigData};
use virtio_irq_proto::{Config, QUEUE_COUNT};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Number of queues as an index type.
const QUEUES: usize = QUEUE_COUNT as usize;

/// Guest memory: the largest request with 65535 vectors takes 258 pages, and many that were never answered fit.
const MEMORY: NonZeroUsize = NonZeroUsize::new(16 << 20).unwrap();

/// What QEMU's `vhost-user-test-device` takes of a backend's protocol features and this crate can play.
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIG);

/// What the session cannot do without.
const NEEDED: VhostUserProtocolFeatures =
    VhostUserProtocolFeatures::CONFIG.union(VhostUserProtocolFeatures::REPLY_ACK);

const SOCKET: u64 = QUEUES as u64;

/// Why the vhost-user side failed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A message failed: the backend refused it or answered nonsense.
    #[error("the backend fails at {message}")]
    Message {
        /// Name of the message in the vhost-user specification.
        message: &'static str,
        /// What the vhost crate says.
        source: vhost::Error,
    },
    /// The backend did not answer in time. It may be serving another frontend: a backend serves one at a time.
    #[error("the backend did not answer {message} within {limit:?}; another frontend may be connected to it")]
    NoAnswer {
        /// Name of the message in the vhost-user specification.
        message: &'static str,
        /// How long the session waited.
        limit: Duration,
    },
    /// The backend closed the connection.
    #[error("the backend closed the connection")]
    Closed,
    /// Something the device needs is not offered.
    #[error("the backend does not offer {0}")]
    Missing(&'static str),
    /// The backend has fewer queues than the device.
    #[error("the backend has {0} queues, not {QUEUE_COUNT}")]
    Queues(u64),
    /// An operating system call failed on this side.
    #[error("cannot {action}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Guest memory could not be made.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A ring lies outside of guest memory.
    #[error("a ring lies outside of guest memory")]
    Ring,
}

/// Where a queue lies, in guest-physical addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// A connection to a backend that has been recognized as one, with its eventfds.
pub(crate) struct Session {
    frontend: Frontend,
    watchdog: Watchdog,
    limit: Duration,
    memory: Arc<GuestMemory>,
    features: u64,
    kicks: [EventFd; QUEUES],
    calls: [EventFd; QUEUES],
    epoll: Epoll,
}

impl Session {
    /// Begins a session as QEMU does when it realizes the device. No message may take longer than `limit`.
    pub(crate) fn new(stream: UnixStream, limit: Duration) -> Result<Self, SessionError> {
        let watched = stream.try_clone().map_err(system("duplicate the socket"))?;
        let epoll = Epoll::new().map_err(system("create an epoll instance"))?;
        let kicks = eventfds()?;
        let calls = eventfds()?;
        // Edge-triggered: the wait itself consumes the signal, and nobody has to read the eventfd.
        for (index, call) in calls.iter().enumerate() {
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, index as u64);
            epoll.ctl(ControlOperation::Add, call.as_raw_fd(), event).map_err(system("watch an eventfd"))?;
        }
        let event = EpollEvent::new(EventSet::READ_HANG_UP, SOCKET);
        epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event).map_err(system("watch the socket"))?;

        let mut session = Self {
            frontend: Frontend::from_stream(stream, QUEUES as u64),
            watchdog: Watchdog::new(watched).map_err(system("start a thread"))?,
            limit,
            memory: Arc::new(GuestMemory::new(MEMORY)?),
            features: 0,
            kicks,
            calls,
            epoll,
        };
        session.negotiate()?;
        Ok(session)
    }

    fn negotiate(&mut self) -> Result<(), SessionError> {
        self.features = self.message("GET_FEATURES", |frontend| frontend.get_features())?;
        if self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return Err(SessionError::Missing("vhost-user protocol features"));
        }
        let offered = self.message("GET_PROTOCOL_FEATURES", |frontend| frontend.get_protocol_features())?;
        if !offered.contains(NEEDED) {
            return Err(SessionError::Missing("the protocol features CONFIG and REPLY_ACK"));
        }
        let taken = offered & PROTOCOL;
        self.message("SET_PROTOCOL_FEATURES", |frontend| frontend.set_protocol_features(taken))?;
        if taken.contains(VhostUserProtocolFeatures::MQ) {
            match self.message("GET_QUEUE_NUM", |frontend| frontend.get_queue_num())? {
                enough if enough >= u64::from(QUEUE_COUNT) => {}
                other => return Err(SessionError::Queues(other)),
            }
        }
        self.message("SET_OWNER", |frontend| frontend.set_owner())?;
        // From here on every message is acknowledged, so an error is reported at the message that caused it.
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        for index in 0..QUEUES {
            self.set_call(index)?;
        }
        Ok(())
    }

    /// What the device offers, without the bit that belongs to vhost-user.
    pub(crate) fn device_features(&self) -> u64 {
        self.features & !VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Reads the whole configuration space, as QEMU does for every access of the guest.
    pub(crate) fn config(&mut self) -> Result<[u8; Config::SIZE], SessionError> {
        let (_, payload) = self.message("GET_CONFIG", |frontend| {
            let size = Config::SIZE as u32;
            frontend.get_config(0, size, VhostUserConfigFlags::empty(), &[0; Config::SIZE])
        })?;
        payload.try_into().map_err(|_| SessionError::Missing("a configuration space of 16 bytes"))
    }

    /// Starts the rings, as QEMU does when the guest sets DRIVER_OK.
    pub(crate) fn start(&mut self, features: u64, rings: &[Ring; QUEUES]) -> Result<(), SessionError> {
        let features = features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.message("SET_FEATURES", |frontend| frontend.set_features(features))?;
        let region = self.memory.region().map_err(|_| SessionError::Ring)?;
        self.message("SET_MEM_TABLE", |frontend| frontend.set_mem_table(&[region]))?;
        for (index, ring) in rings.iter().enumerate() {
            let place = self.place(ring)?;
            self.message("SET_VRING_NUM", |frontend| frontend.set_vring_num(index, ring.size))?;
            self.message("SET_VRING_BASE", |frontend| frontend.set_vring_base(index, 0))?;
            self.message("SET_VRING_ADDR", |frontend| frontend.set_vring_addr(index, &place))?;
            let kick = self.kicks[index].try_clone().map_err(system("duplicate an eventfd"))?;
            self.message("SET_VRING_KICK", |frontend| frontend.set_vring_kick(index, &kick))?;
            self.set_call(index)?;
        }
        for index in 0..QUEUES {
            self.message("SET_VRING_ENABLE", |frontend| frontend.set_vring_enable(index, true))?;
        }
        Ok(())
    }

    /// Stops the rings, as QEMU does when the guest resets the device. The device touches no buffer after this.
    pub(crate) fn stop(&mut self) -> Result<(), SessionError> {
        for index in 0..QUEUES {
            self.message("SET_VRING_ENABLE", |frontend| frontend.set_vring_enable(index, false))?;
        }
        for index in 0..QUEUES {
            self.message("GET_VRING_BASE", |frontend| frontend.get_vring_base(index))?;
        }
        Ok(())
    }

    /// Tells the device that a queue has new buffers.
    pub(crate) fn kick(&self, queue: usize) -> Result<(), SessionError> {
        match self.kicks[queue].write(1) {
            // The counter is full of notifications that the device has not read yet: it will look.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other.map_err(system("notify the device")),
        }
    }

    /// Sleeps until the device called or the deadline passed, and says whether there is time left. Every queue has to
    /// be looked at again afterwards: the call may have been for any of them.
    ///
    /// # Errors
    /// The backend closed the connection.
    pub(crate) fn wait(&self, deadline: Instant) -> Result<bool, SessionError> {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the last fraction of a millisecond is slept and not polled. Without time left, what was
        // called for is taken all the same, and whoever polls this session sees that.
        let timeout = i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        let mut events = [EpollEvent::default(); QUEUES + 1];
        let count = match self.epoll.wait(timeout, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(!left.is_zero()),
            other => other.map_err(system("wait for the device"))?,
        };
        match events[..count].iter().any(|event| event.data() == SOCKET) {
            true => Err(SessionError::Closed),
            false => Ok(!left.is_zero()),
        }
    }

    fn set_call(&mut self, index: usize) -> Result<(), SessionError> {
        let call = self.calls[index].try_clone().map_err(system("duplicate an eventfd"))?;
        self.message("SET_VRING_CALL", |frontend| frontend.set_vring_call(index, &call))
    }

    /// vhost-user names rings by the address at which the VMM maps them.
    fn place(&self, ring: &Ring) -> Result<VringConfigData, SessionError> {
        let user = |address| {
            self.memory.user_address(address).map(|at| at.as_ptr() as u64).ok_or(SessionError::Ring)
        };
        Ok(VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: user(ring.descriptors)?,
            used_ring_addr: user(ring.used)?,
            avail_ring_addr: user(ring.available)?,
            log_addr: None,
        })
    }

    fn message<R>(
        &mut self,
        message: &'static str,
        send: impl FnOnce(&mut Frontend) -> vhost::Result<R>,
    ) -> Result<R, SessionError> {
        self.watchdog.arm(Instant::now() + self.limit);
        let sent = send(&mut self.frontend);
        match (sent, self.watchdog.disarm()) {
            (_, true) => Err(SessionError::NoAnswer { message, limit: self.limit }),
            (Ok(answer), false) => Ok(answer),
            (Err(source), false) => Err(SessionError::Message { message, source }),
        }
    }
}

/// Readable when [`Session::wait`] would not sleep.
impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `self.epoll` owns the descriptor, and the result borrows `self`.
        unsafe { BorrowedFd::borrow_raw(self.epoll.as_raw_fd()) }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("limit", &self.limit).finish_non_exhaustive()
    }
}

fn eventfds() -> Result<[EventFd; QUEUES], SessionError> {
    let create = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(system("create an eventfd"));
    Ok([create()?, create()?])
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> SessionError {
    move |source| SessionError::System { action, source }
}
