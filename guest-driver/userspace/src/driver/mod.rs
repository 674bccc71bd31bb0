// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver: what a guest does with the device.

mod error;
mod exchange;

pub use error::DriverError;

use crate::list::List;
use crate::memory::{GuestMemory, PAGE};
use crate::queue::{Buffers, Queue, RingFeatures, SIZE};
use crate::session::{Session, SessionError};
use crate::sources::{Clients, Signal};
use crate::transport::VhostUser;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_irq_driver::{Allocation, Block, Change, Device, Fetch, Find, NotHeld, Progress, Target, ranges};
use virtio_irq_proto::{
    Allocate, EVENT_QUEUE, Event, F_EVENT, F_NATIVE, Function, FunctionId, Message, REQUEST_QUEUE,
    ReplyError, ResetFunction, Source, SourceId, SourceRange, SourceRequest, Status, VectorRange, wire,
};
use zerocopy::IntoBytes;

/// Size of an event buffer in bytes: a page, which a buffer takes anyway, of 256 records.
const EVENT_BUFFER: usize = PAGE;

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
    clients: Clients,
    /// Requests that nobody waits for any more and whose replies matter all the same, by the token of the ring.
    late: BTreeMap<u16, Change>,
    /// Sources that came with such a reply.
    unwanted: Vec<SourceId>,
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
        let mut driver = Self {
            queues: None,
            transport,
            options,
            device,
            negotiated,
            clients: Clients::new(device.max_sources()),
            late: BTreeMap::new(),
            unwanted: Vec::new(),
        };
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

    /// Greatest number of sources that the device lets this driver hold; 0 where it delivers none.
    pub fn max_sources(&self) -> u32 {
        self.device.max_sources()
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
        self.require(F_NATIVE, function)?;
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

    /// Allocates sources: at least `request.least` and at most `request.most` vectors of a function, which the device
    /// enables on the host. Each is held until it is freed, its function is gone, or the device is reset.
    ///
    /// Until [`Driver::connect_signal`] says something else, [`Driver::events`] tells their interrupts.
    ///
    /// # Errors
    /// As [`Driver::exchange`]; the device refuses: [`DriverError::status`] says why, and for some reasons it is worth
    /// asking again (IRQ-DRV-37); a device without event delivery. After a reply that makes no sense the driver holds no
    /// source of this function any more. If the reply comes later than the driver waits, what it gives is freed.
    pub fn allocate(&mut self, request: Allocate) -> Result<Vec<Source>, DriverError> {
        self.require(F_EVENT, request.function)?;
        let deadline = self.deadline();
        self.settle(deadline)?;
        let allocation = Allocation::new(&self.device, request);
        let request = allocation.request();
        let result = self.change(
            Change::Allocate(allocation),
            request.to_wire().as_bytes(),
            request.reply_size(),
            deadline,
        );
        if let Err(DriverError::Reply(ReplyError::Malformed)) = &result {
            self.reset_function(request.function)?;
        }
        result
    }

    /// Frees sources, all or none. Nothing more comes of them.
    ///
    /// # Errors
    /// As [`Driver::exchange`]; the driver does not hold all of them; the device refuses, and frees none. If the reply
    /// comes later than the driver waits, they are freed then.
    pub fn free(&mut self, sources: SourceRange) -> Result<(), DriverError> {
        self.sources_request(SourceRequest::Free, sources)
    }

    /// Masks sources: the device keeps their interrupts until they are unmasked.
    ///
    /// # Errors
    /// As [`Driver::exchange`]; the driver does not hold all of them; the device refuses, and masks none.
    pub fn mask(&mut self, sources: SourceRange) -> Result<(), DriverError> {
        self.sources_request(SourceRequest::Mask, sources)
    }

    /// Unmasks sources. One that fired meanwhile is told once. To be called for an INTx source after each of its
    /// interrupts, as soon as the function has released its pin (IRQ-DRV-43).
    ///
    /// # Errors
    /// As [`Driver::exchange`]; the driver does not hold all of them. Where the host cannot unmask a pin, that source stays
    /// masked and the others are unmasked.
    pub fn unmask(&mut self, sources: SourceRange) -> Result<(), DriverError> {
        self.sources_request(SourceRequest::Unmask, sources)
    }

    /// Frees all sources of a function, also ones that this driver does not know of. It does not reset the function
    /// itself.
    ///
    /// # Errors
    /// As [`Driver::exchange`]; the device knows no such function.
    pub fn reset_function(&mut self, function: FunctionId) -> Result<(), DriverError> {
        self.require(F_EVENT, function)?;
        let request = ResetFunction { function }.to_wire();
        let deadline = self.deadline();
        self.change(
            Change::ResetFunction(function),
            request.as_bytes(),
            size_of::<wire::ReplyHead>(),
            deadline,
        )?;
        Ok(())
    }

    /// Has the interrupts of a source signalled in this way from now on, until it is freed. [`Driver::events`] does so,
    /// and does not return them.
    ///
    /// # Errors
    /// The driver does not hold the source.
    pub fn connect_signal(&mut self, source: SourceId, signal: Signal) -> Result<(), NotHeld> {
        self.clients.connect(source, signal)
    }

    /// The sources that this driver holds, in ascending order of their ids, each with its function.
    pub fn sources(&self) -> impl Iterator<Item = (SourceId, FunctionId)> + '_ {
        self.clients.table().iter()
    }

    /// Waits until the device says something, but no longer than `timeout`, and returns the events in their order;
    /// none if the time passed. Interrupts of sources with a [`Signal`] are signalled and not returned.
    ///
    /// What comes out is about sources that the driver holds and that are not masked; a source that was revoked is told
    /// once and stays to be freed, a function that is gone is told once.
    ///
    /// # Errors
    /// The backend closed the connection; the device broke the rules of the ring.
    pub fn events(&mut self, timeout: Duration) -> Result<Vec<Event>, DriverError> {
        let deadline = Instant::now() + timeout;
        loop {
            self.collect_events()?;
            if self.clients.has_pending() {
                break;
            }
            if !self.transport.session().wait(deadline)? {
                // The wait has taken the call for what came in between.
                self.collect_events()?;
                break;
            }
        }
        Ok(self.clients.take_pending())
    }

    /// Resets the device and sets it up again, as a guest's driver does when it is loaded anew. The device forgets
    /// generations and pending events, and gives up every buffer. All sources are freed before (IRQ-DRV-42).
    ///
    /// # Errors
    /// The backend fails; the driver is of no use any more.
    pub fn reset(&mut self) -> Result<(), DriverError> {
        let held: Vec<_> = ranges(self.sources().map(|(source, _)| source)).collect();
        for sources in held {
            // The reset does it for those that cannot be freed now.
            let _ = self.free(sources);
        }
        self.transport.set_status(DeviceStatus::empty());
        self.transport.check()?;
        self.queues = None;
        self.memory().unshare_all();
        self.clients.reset();
        self.late.clear();
        self.unwanted.clear();
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

    /// What a driver must not send, and need not ask (IRQ-DRV-18, IRQ-DRV-31, IRQ-DRV-29).
    fn require(&self, feature: u32, function: FunctionId) -> Result<(), DriverError> {
        if self.negotiated & (1 << feature) == 0 {
            let name = if feature == F_EVENT { "VIRTIO_IRQ_F_EVENT" } else { "VIRTIO_IRQ_F_NATIVE" };
            return Err(DriverError::Feature(name));
        }
        match self.clients.is_gone(function) {
            true => Err(ReplyError::Refused(Status::FunctionGone).into()),
            false => Ok(()),
        }
    }

    fn sources_request(&mut self, request: SourceRequest, sources: SourceRange) -> Result<(), DriverError> {
        let wire = request.to_wire(sources);
        let deadline = self.deadline();
        self.change(
            Change::Sources(request, sources),
            wire.as_bytes(),
            size_of::<wire::ReplyHead>(),
            deadline,
        )?;
        Ok(())
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.options.timeout
    }
}

/// Readable when the device has called: for who waits for more than this device and then takes [`Driver::events`] with a
/// timeout of zero. Another operation can take a call that was for an event, so events are to be taken after each as well.
impl AsFd for Driver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.session().as_fd()
    }
}
