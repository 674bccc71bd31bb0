// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver: what a guest does with the device.

use crate::list::List;
use crate::memory::GuestMemory;
use crate::queue::{Buffers, Queue, QueueError, RingFeatures, SIZE};
use crate::session::{Session, SessionError};
use crate::transport::VhostUser;
use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_irq_driver::{
    Block, Device, Fetch, Find, FindError, NotContiguous, ProbeError, Progress, Target, events,
};
use virtio_irq_proto::{
    EVENT_QUEUE, Event, Function, FunctionId, Message, REQUEST_QUEUE, ReplyError, Status, VectorRange,
};
use zerocopy::IntoBytes;

/// Size of an event buffer in bytes: eight records.
const EVENT_BUFFER: usize = 8 * Event::SIZE;

/// How a driver behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Greatest time that one operation, or one message of the connection's set-up, may take.
    pub timeout: Duration,
    /// Whether to use indirect descriptors where the device offers them.
    pub indirect: bool,
    /// Whether to use event indexes where the device offers them.
    pub event_idx: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), indirect: true, event_idx: true }
    }
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// There is nobody to talk to.
    #[error("cannot connect to {}; is vhost-device-irq running with this --socket-path?", path.display())]
    Connect {
        /// Path of the socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The vhost-user side failed. The driver is of no use any more.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The device is not one that this driver can use.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The device broke the rules of the ring, or never answered so often that the ring is full.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The device did not answer in time. The buffers stay its own until [`Driver::reset`].
    #[error("the device did not answer within {0:?}")]
    Timeout(Duration),
    /// The device refused the request, or its reply is malformed.
    #[error(transparent)]
    Reply(#[from] ReplyError),
    /// The search ended without a function.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The messages do not form a block.
    #[error(transparent)]
    NotContiguous(#[from] NotContiguous),
    /// The device returned an event buffer without a whole record.
    #[error("the device returned an event buffer without an event")]
    EmptyEvent,
}

impl DriverError {
    /// The status with which the device refused a request, where that is what happened.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Reply(ReplyError::Refused(status))
            | Self::Find(FindError::Reply(ReplyError::Refused(status))) => Some(*status),
            _ => None,
        }
    }
}

/// A guest's driver of one virtio-irq device.
///
/// Dropping it closes the connection, which is to the device as if the virtual machine had ended.
#[derive(Debug)]
pub struct Driver {
    /// `None` only while [`Driver::reset`] sets new ones up.
    queues: Option<Queues>,
    transport: VhostUser,
    options: Options,
    device: Device,
    negotiated: u64,
    pending: VecDeque<Event>,
}

#[derive(Debug)]
struct Queues {
    requests: Queue,
    events: Queue,
}

impl Driver {
    /// Connects to the device at `path` and sets it up, as a VMM and a guest's driver do together.
    ///
    /// # Errors
    /// Nobody listens there; the backend speaks another protocol or is busy with another frontend; the device is not
    /// one that this driver can use.
    pub fn connect(path: &Path, options: Options) -> Result<Self, DriverError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| DriverError::Connect { path: path.to_owned(), source })?;
        Self::from_stream(stream, options)
    }

    /// [`Driver::connect`] over a stream that exists already.
    ///
    /// # Errors
    /// As [`Driver::connect`].
    pub fn from_stream(stream: UnixStream, options: Options) -> Result<Self, DriverError> {
        let transport = VhostUser::new(Session::new(stream, options.timeout)?)?;
        let offered = transport.session().device_features();
        let wanted = 1 << VIRTIO_F_VERSION_1
            | Device::FEATURES
            | u64::from(options.indirect) << VIRTIO_RING_F_INDIRECT_DESC
            | u64::from(options.event_idx) << VIRTIO_RING_F_EVENT_IDX;
        let negotiated = offered & wanted;
        if negotiated & (1 << VIRTIO_F_VERSION_1) == 0 {
            return Err(SessionError::Missing("VIRTIO_F_VERSION_1").into());
        }
        let device = Device::probe(transport.config(), negotiated)?;
        let pending = VecDeque::new();
        let mut driver = Self { queues: None, transport, options, device, negotiated, pending };
        driver.start()?;
        Ok(driver)
    }

    /// The configuration space as the device shows it.
    pub fn config(&self) -> &[u8] {
        self.transport.config()
    }

    /// Features that both sides agreed on, as a mask.
    pub fn features(&self) -> u64 {
        self.negotiated
    }

    /// Greatest number of vectors that one request may name. Operations here cut longer ranges by themselves.
    pub fn max_vectors(&self) -> u16 {
        self.device.max_vectors()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        self.transport.session().memory()
    }

    /// Every function that the device lists, in ascending order of the ids.
    ///
    /// # Errors
    /// As [`Driver::exchange`]; the reply is not a list.
    pub fn functions(&mut self) -> Result<Vec<Function>, DriverError> {
        let deadline = self.deadline();
        let mut list = List::new();
        loop {
            let request = list.request();
            let reply = self.send(request.to_wire().as_bytes(), request.reply_size(), deadline)?;
            if let Progress::Done(functions) = list.reply(&reply)? {
                return Ok(functions);
            }
        }
    }

    /// The device's entry of a PCI function, by its guest address or, where the host does not know that, by its ids.
    ///
    /// # Errors
    /// As [`Driver::exchange`]; no entry fits, or several do.
    pub fn find(&mut self, target: Target) -> Result<Function, DriverError> {
        let deadline = self.deadline();
        let mut find = Find::new(target);
        loop {
            let request = find.request();
            let reply = self.send(request.to_wire().as_bytes(), request.reply_size(), deadline)?;
            if let Progress::Done(function) = find.reply(&reply)? {
                return Ok(function);
            }
        }
    }

    /// The messages of a range of vectors, in the order of the vectors.
    ///
    /// # Errors
    /// As [`Driver::exchange`]; the device refuses: [`DriverError::status`] says why.
    pub fn messages(
        &mut self,
        function: FunctionId,
        vectors: VectorRange,
    ) -> Result<Vec<Message>, DriverError> {
        let deadline = self.deadline();
        let mut fetch = Fetch::new(&self.device, function, vectors);
        let mut messages = Vec::with_capacity(vectors.len());
        loop {
            let request = fetch.request();
            let reply = self.send(request.to_wire().as_bytes(), request.reply_size(), deadline)?;
            if let Progress::Done(()) = fetch.reply(&reply, |message| messages.push(message))? {
                return Ok(messages);
            }
        }
    }

    /// The block that the messages of a range of vectors form.
    ///
    /// # Errors
    /// As [`Driver::messages`]; they do not form one.
    pub fn block(&mut self, function: FunctionId, vectors: VectorRange) -> Result<Block, DriverError> {
        Ok(Block::of(&self.messages(function, vectors)?)?)
    }

    /// Sends any bytes as a request and returns what the device wrote, of at most `room` bytes.
    ///
    /// # Errors
    /// [`DriverError::Timeout`]: the device did not answer in time, and its late answer will be dropped. Anything else
    /// that is not the session's ends with [`Driver::reset`].
    pub fn exchange(&mut self, request: &[u8], room: usize) -> Result<Vec<u8>, DriverError> {
        let deadline = self.deadline();
        self.send(request, room, deadline)
    }

    /// Waits until the device says something, but no longer than `timeout`, and returns the events in their order;
    /// none if the time passed.
    ///
    /// # Errors
    /// The backend closed the connection; the device broke the rules of the ring.
    pub fn events(&mut self, timeout: Duration) -> Result<Vec<Event>, DriverError> {
        let deadline = Instant::now() + timeout;
        loop {
            self.collect_events()?;
            if !self.pending.is_empty() || !self.transport.session().wait(deadline)? {
                return Ok(self.pending.drain(..).collect());
            }
        }
    }

    /// Resets the device and sets it up again, as a guest's driver does when it is loaded anew. The device forgets
    /// generations and pending events, and gives up every buffer.
    ///
    /// # Errors
    /// The backend fails; the driver is of no use any more.
    pub fn reset(&mut self) -> Result<(), DriverError> {
        self.transport.set_status(DeviceStatus::empty());
        self.transport.check()?;
        self.queues = None;
        self.memory().unshare_all();
        self.pending.clear();
        self.start()
    }

    fn start(&mut self) -> Result<(), DriverError> {
        let features = RingFeatures {
            indirect: self.negotiated & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0,
            event_idx: self.negotiated & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
        };
        let transport = &mut self.transport;
        let driver = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(driver);
        transport.write_driver_features(self.negotiated);
        transport.set_status(driver | DeviceStatus::FEATURES_OK);
        let memory = Arc::clone(transport.session().memory());
        let requests = Queue::new(transport, &memory, REQUEST_QUEUE, features)?;
        let mut events = Queue::new(transport, &memory, EVENT_QUEUE, features)?;
        for _ in 0..SIZE {
            events.give(Buffers::new(&[], EVENT_BUFFER))?;
        }
        transport.set_status(driver | DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);
        transport.notify(EVENT_QUEUE);
        transport.check()?;
        self.queues = Some(Queues { requests, events });
        Ok(())
    }

    fn send(&mut self, request: &[u8], room: usize, deadline: Instant) -> Result<Vec<u8>, DriverError> {
        let queues = self.queues.as_mut().ok_or(SessionError::Closed)?;
        let token = queues.requests.give(Buffers::new(request, room))?;
        self.transport.notify(REQUEST_QUEUE);
        self.transport.check()?;
        loop {
            // Anything else is the late answer to a request that timed out: nobody waits for it.
            while let Some(used) = queues.requests.take()? {
                if used.token == token {
                    return Ok(used.into_written());
                }
            }
            if !self.transport.session().wait(deadline)? {
                return Err(DriverError::Timeout(self.options.timeout));
            }
        }
    }

    fn collect_events(&mut self) -> Result<(), DriverError> {
        let queues = self.queues.as_mut().ok_or(SessionError::Closed)?;
        let mut returned = false;
        // As many as the device can hold: one that fills them as fast as they come must not keep this loop busy.
        for _ in 0..SIZE {
            let Some(used) = queues.events.take()? else { break };
            // The same buffer would come back the same way.
            if used.written().len() < Event::SIZE {
                return Err(DriverError::EmptyEvent);
            }
            self.pending.extend(events(used.written()));
            queues.events.give(used.buffers)?;
            returned = true;
        }
        if returned {
            self.transport.notify(EVENT_QUEUE);
            self.transport.check()?;
        }
        Ok(())
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.options.timeout
    }
}
