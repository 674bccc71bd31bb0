// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sources through driver core, device core and simulated host, under random operations.
//!
//! Everything is real but the rings, which are queues here, so that a test decides what the device has returned and the
//! driver has not looked at yet. A model follows what the device answers and what the host does, and knows of every
//! interrupt: a test case fails where one is lost, doubled or told to the wrong client, where a vector or an eventfd is
//! leaked, and where a status is not the one of the specification.

use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU16;
use vhost_device_irq::bridge::Bridge;
use vhost_device_irq::device::{Assigned, Quota};
use vhost_device_irq::host::HostFunction;
use vhost_device_irq::host::sim::SimFunction;
use virtio_irq_driver::{
    Allocation, Change, Device as Driver, Effect, Slot, Sources, Verdict, events, ranges,
};
use virtio_irq_proto::{
    Allocate, Delivery, Event, F_EVENT, F_NATIVE, Function, FunctionFlags, FunctionId, FunctionList, IrqType,
    Layout, ListFunctions, PciIds, Request, ResetFunction, SourceId, SourceList, SourceRange, SourceRequest,
    Status, read_head,
};
use zerocopy::IntoBytes;

const QUOTA: Quota = Quota { guest: 14, function: 9 };
const FEATURES: u64 = 1 << F_NATIVE | 1 << F_EVENT;
/// MSI and MSI-X vectors of each function; each has a pin.
const FUNCTIONS: [(u16, u16); 3] = [(8, 0), (1, 12), (32, 4)];

#[derive(Clone, Debug)]
enum Operation {
    Allocate {
        function: u16,
        irq_type: IrqType,
        layout: Layout,
        least: u16,
        more: u16,
        first: u16,
    },
    Range(SourceRequest, u32, u16),
    ResetFunction(u16),
    /// The driver looks at the replies, or at the event buffers, that the device has returned.
    TakeReplies,
    TakeEvents,
    /// The driver makes event buffers for so many records available.
    Give(Vec<usize>),
    /// The device does what it has to do.
    Work,
    /// The host: a vector is raised, calls fail, the VMM takes interrupts away, messages move, a function leaves.
    Fire(usize, u16),
    Fail(usize, u32, u32),
    TakeAway(usize),
    Move(usize),
    Remove(usize),
    /// How many vectors the host has to give.
    Limit(usize, u16),
    /// The VMM: pauses the machine, resets it, ends.
    Pause,
    Reset,
    Die,
}

/// One source, from the reply that gives it to the request that frees it.
#[derive(Clone, Debug)]
struct Instance {
    function: u16,
    irq_type: IrqType,
    vector: u16,
    /// How often it fired; how many of that an event said, the client heard, the driver keeps for the client.
    fires: u64,
    delivered: u64,
    told: u64,
    kept: u64,
    /// The device masks it.
    masked: bool,
    /// A pin that was raised while it was masked on the host: it fires when that ends.
    asserted: bool,
    /// A pin that the host may have failed to unmask.
    unsure: bool,
    /// The host ended it: the device will find out and may say so.
    ended: bool,
    revoked: bool,
    /// The device has to say so.
    must_be_revoked: bool,
}

type Serial = usize;

struct Reply {
    change: Change,
    bytes: Vec<u8>,
    /// What the reply gives.
    given: Vec<Serial>,
}

/// A record in a buffer that the driver did not look at, and what it is about.
struct Record {
    event: Event,
    /// Which source, and how many of its fires it says.
    about: Option<(Serial, u64)>,
}

struct World {
    bridge: Bridge,
    hosts: Vec<SimFunction>,
    /// Functions of which a call can fail.
    failing: BTreeSet<u16>,
    removed: BTreeSet<u16>,
    limits: Vec<u16>,
    // The rings.
    replies: VecDeque<Reply>,
    buffers: VecDeque<usize>,
    returned: VecDeque<Vec<Record>>,
    // The driver.
    driver: Driver,
    table: Sources<Vec<Slot>>,
    clients: BTreeMap<SourceId, Serial>,
    heard_gone: BTreeSet<u16>,
    // What is true.
    all: Vec<Instance>,
    held: BTreeMap<SourceId, Serial>,
    ready: VecDeque<Serial>,
    gone: BTreeSet<u16>,
    said_gone: BTreeSet<u16>,
}

impl World {
    fn new() -> Self {
        let hosts: Vec<_> = (0..)
            .zip(FUNCTIONS)
            .map(|(index, (msi, msix))| SimFunction::new("sim", PciIds::default(), msi, msix, index))
            .collect();
        let functions = (0..).zip(FUNCTIONS).zip(&hosts).map(|((id, (msi_count, msix_count)), host)| {
            let function = Function {
                id: FunctionId(id),
                flags: FunctionFlags::NATIVE.with(FunctionFlags::EVENT, true),
                guest_address: None,
                ids: PciIds::default(),
                intx_count: 1,
                msi_count,
                msix_count,
            };
            let host: Box<dyn HostFunction> = Box::new(host.clone());
            (Assigned { function, refused: false }, host)
        });
        let bridge = Bridge::new(functions.collect(), QUOTA).unwrap();
        bridge.device().negotiated(FEATURES);
        let driver = Driver::probe(bridge.config().as_bytes(), FEATURES).unwrap();
        let table = Sources::new(vec![Slot::default(); driver.max_sources() as usize]);
        Self {
            bridge,
            limits: vec![u16::MAX; hosts.len()],
            hosts,
            failing: BTreeSet::new(),
            removed: BTreeSet::new(),
            replies: VecDeque::new(),
            buffers: VecDeque::new(),
            returned: VecDeque::new(),
            driver,
            table,
            clients: BTreeMap::new(),
            heard_gone: BTreeSet::new(),
            all: Vec::new(),
            held: BTreeMap::new(),
            ready: VecDeque::new(),
            gone: BTreeSet::new(),
            said_gone: BTreeSet::new(),
        }
    }

    fn run(&mut self, operation: &Operation) {
        match operation {
            Operation::Allocate { function, irq_type, layout, least, more, first } => {
                self.allocate(Allocate {
                    function: FunctionId(*function),
                    irq_type: *irq_type,
                    layout: *layout,
                    least: NonZeroU16::new(*least).unwrap(),
                    most: NonZeroU16::new(least + more).unwrap(),
                    first: *first,
                    delivery: Delivery::Event,
                });
            }
            Operation::Range(request, first, count) => {
                self.range(*request, SourceRange::new(*first, *count).unwrap());
            }
            Operation::ResetFunction(function) => self.reset_function(*function),
            Operation::TakeReplies => self.take_replies(),
            Operation::TakeEvents => self.take_events(),
            Operation::Give(rooms) => self.buffers.extend(rooms),
            Operation::Work => self.work(),
            Operation::Pause => self.stop(),
            Operation::Reset => {
                self.stop();
                self.bridge.reset();
                self.forget();
            }
            Operation::Die => {
                self.end();
                self.bridge.device().negotiated(FEATURES);
            }
            other => self.host(other),
        }
        let hosts = &self.hosts;
        self.failing.retain(|function| hosts[usize::from(*function)].is_failing());
        self.check_host();
    }

    fn host(&mut self, operation: &Operation) {
        match operation {
            Operation::Fire(function, vector) => self.fire(*function, *vector),
            Operation::Fail(function, after, count) => {
                self.hosts[*function].fail_later(*after, *count);
                self.failing.insert(*function as u16);
            }
            Operation::TakeAway(function) => {
                // Without sources it would be the guest's native use, which nothing here ends.
                if self.hosts[*function].enabled_for_sources().is_some() {
                    self.hosts[*function].take_away();
                }
                self.end_sources(|instance| usize::from(instance.function) == *function);
            }
            Operation::Move(function) => self.hosts[*function].move_messages(),
            Operation::Remove(function) => {
                self.hosts[*function].remove();
                self.removed.insert(*function as u16);
            }
            Operation::Limit(function, count) => {
                self.hosts[*function].enable(*count);
                self.limits[*function] = *count;
            }
            other => panic!("{other:?} is not the host's"),
        }
    }

    /// The queues stop: the host gets everything back, and the driver will hear of each of its sources.
    fn stop(&mut self) {
        self.bridge.stop();
        self.end_sources(|_| true);
        for serial in self.held.values() {
            self.all[*serial].must_be_revoked |= !self.all[*serial].revoked;
        }
    }

    fn end_sources(&mut self, which: impl Fn(&Instance) -> bool) {
        for serial in self.held.values() {
            let instance = &mut self.all[*serial];
            instance.ended |= which(instance);
        }
        let all = &self.all;
        self.ready.retain(|serial| !all[*serial].ended);
    }

    /// The machine is another one, or begins anew.
    fn forget(&mut self) {
        self.replies.clear();
        self.buffers.clear();
        self.returned.clear();
        self.table.reset();
        self.clients.clear();
        self.held.clear();
        self.ready.clear();
        // A function that went unnoticed is unknown to the new driver as well.
        self.heard_gone = self.gone.clone();
        self.said_gone = self.gone.clone();
    }

    /// The VMM ends: nothing of the guest is left on the host.
    fn end(&mut self) {
        self.bridge.reset();
        self.bridge.device().negotiated(0);
        self.forget();
        for (index, host) in (0..).zip(&self.hosts) {
            if self.removed.contains(&index) {
                // Hardware that is gone holds nothing, but the simulation goes on to.
                host.take_away();
            }
            assert_eq!(host.attached(), [0; 0], "function {index} keeps vectors");
            assert_eq!(host.enabled_for_sources(), None, "function {index} stays enabled");
        }
        assert_eq!(self.bridge.deliveries().count(), 0, "an eventfd is left");
    }

    fn fire(&mut self, function: usize, vector: u16) {
        // There is one pin, whatever the vector.
        let is_pin = self.hosts[function].enabled_for_sources() == Some(IrqType::Intx);
        let vector = if is_pin { 0 } else { vector };
        let signalled = self.hosts[function].fire(vector);
        let number = function as u16;
        if self.gone.contains(&number) {
            return;
        }
        let serial = self.held.values().copied().find(|serial| {
            let instance = &self.all[*serial];
            instance.function == number && instance.vector == vector && !instance.ended
        });
        let Some(serial) = serial else {
            assert!(!signalled, "function {function} signals vector {vector}, which is no source");
            return;
        };
        let instance = &mut self.all[serial];
        if !signalled {
            assert_eq!(instance.irq_type, IrqType::Intx);
            instance.asserted = true;
            return;
        }
        instance.fires += 1;
        self.queue(serial);
    }

    /// Something of a source is pending: it waits for its turn unless it is masked.
    fn queue(&mut self, serial: Serial) {
        let instance = &self.all[serial];
        let waits = !instance.masked && !instance.unsure && !instance.ended;
        if waits && instance.fires > instance.delivered && !self.ready.contains(&serial) {
            self.ready.push_back(serial);
        }
    }

    /// The device's worker: as after any notification.
    fn work(&mut self) {
        self.bridge.collect();
        while let Some(room) = self.buffers.front().copied() {
            if !self.bridge.device().has_events() {
                break;
            }
            self.buffers.pop_front();
            let records = self.bridge.device().next_events(room);
            assert!(records.len() <= room && !records.is_empty(), "a buffer is used for what fits");
            self.bridge.device().events_taken(records.len());
            let records: Vec<_> = events(records.as_bytes()).map(|event| self.record(event)).collect();
            self.returned.push_back(records);
        }
    }

    /// The device delivers an event: is it one that there is?
    fn record(&mut self, event: Event) -> Record {
        let about = match event {
            Event::Interrupt { function, source } => {
                let serial = *self.held.get(&source).expect("an interrupt of a source that is held");
                let in_order = !self.all[serial].ended && !self.all[serial].unsure;
                let first = if in_order { self.ready.pop_front() } else { Some(serial) };
                let instance = &mut self.all[serial];
                assert_eq!(instance.function, function.0);
                assert!(!instance.masked || instance.unsure, "{instance:?} is masked");
                assert!(!instance.revoked, "{instance:?} was revoked");
                if instance.unsure && instance.fires == instance.delivered {
                    // The host did unmask it.
                    instance.fires += u64::from(std::mem::take(&mut instance.asserted));
                }
                assert!(instance.fires > instance.delivered, "{instance:?} did not fire");
                assert_eq!(first, Some(serial), "first come, first served");
                instance.delivered = instance.fires;
                instance.masked = instance.irq_type == IrqType::Intx;
                Some((serial, instance.fires))
            }
            Event::SourceRevoked { function, source } => {
                let serial = *self.held.get(&source).expect("a source that is held");
                let instance = &mut self.all[serial];
                assert_eq!(instance.function, function.0);
                assert!(instance.ended && !instance.revoked, "{instance:?}");
                instance.revoked = true;
                Some((serial, 0))
            }
            Event::FunctionGone { function } => {
                assert!(self.gone.contains(&function.0));
                assert!(self.said_gone.insert(function.0), "function {function} was reported before");
                None
            }
            Event::MessageChanged { function, .. } => {
                assert!(!self.gone.contains(&function.0), "nothing comes of a function that is gone");
                None
            }
        };
        Record { event, about }
    }

    /// A request and what it comes to: the reply waits until the driver looks.
    fn answer(&mut self, request: &[u8]) -> Vec<u8> {
        self.work();
        let room = Request::parse(request).unwrap().reply_size();
        let reply = self.bridge.answer(request, room).bytes().to_vec();
        assert!(reply.len() >= 8 && reply.len() <= room);
        self.find_gone();
        reply
    }

    /// Functions that are not listed any more, and with them their sources.
    fn find_gone(&mut self) {
        let list = ListFunctions { start: FunctionId(0), count: NonZeroU16::MAX };
        let reply = self.bridge.answer(list.to_wire().as_bytes(), list.reply_size());
        let present: BTreeSet<_> =
            FunctionList::parse(reply.bytes()).unwrap().functions.iter().map(|f| f.id.get()).collect();
        for id in 0..FUNCTIONS.len() as u16 {
            if !present.contains(&id) && self.gone.insert(id) {
                assert!(self.removed.contains(&id), "function {id} is there");
                self.release(|instance| instance.function == id);
            }
        }
    }

    fn release(&mut self, which: impl Fn(&Instance) -> bool) {
        let all = &self.all;
        self.held.retain(|_, serial| !which(&all[*serial]));
        let held: BTreeSet<_> = self.held.values().copied().collect();
        self.ready.retain(|serial| held.contains(serial));
    }

    fn allocate(&mut self, request: Allocate) {
        // The driver's rules: what it frees is settled, and the events from before are looked at (IRQ-DRV-38).
        let frees = |reply: &Reply| {
            !matches!(
                reply.change,
                Change::Sources(SourceRequest::Mask | SourceRequest::Unmask, _) | Change::Allocate(_)
            )
        };
        if self.replies.iter().any(frees) {
            self.take_replies();
        }
        if self.table.must_drain() {
            self.take_events();
            self.table.drained();
        }
        let allocation = Allocation::new(&self.driver, request);
        let request = allocation.request();
        self.work();
        let expected = self.expected(&request);
        let before: BTreeSet<_> = self.held.keys().copied().collect();
        let bytes = self.answer(request.to_wire().as_bytes());
        let status = u16::from_le_bytes([bytes[0], bytes[1]]);
        let uncertain = self.failing.contains(&request.function.0)
            || self.all.iter().any(|instance| instance.ended && instance.function == request.function.0);
        if let Some(expected) = &expected
            && !uncertain
        {
            let got = Status::from_wire(status).unwrap();
            assert_eq!(got, expected.as_ref().err().copied().unwrap_or(Status::Ok), "{request:?}");
        }
        let mut given = Vec::new();
        if read_head(&bytes).is_ok() {
            let list = SourceList::parse(&bytes).unwrap();
            let vectors: Vec<_> = list.sources.iter().map(|source| source.vector.get()).collect();
            if let (Some(Ok(expected)), false) = (expected, uncertain) {
                assert_eq!(vectors, expected, "{request:?}");
            }
            for source in list.sources {
                let id = SourceId(source.id.get());
                assert!(id.0 < QUOTA.guest);
                assert!(!before.contains(&id) || !self.held.contains_key(&id), "id {id} is in use");
                given.push(self.all.len());
                assert_eq!(self.held.insert(id, self.all.len()), None, "id {id} is given twice");
                self.all.push(Instance {
                    function: request.function.0,
                    irq_type: request.irq_type,
                    vector: source.vector.get(),
                    fires: 0,
                    delivered: 0,
                    told: 0,
                    kept: 0,
                    masked: false,
                    asserted: false,
                    unsure: false,
                    ended: false,
                    revoked: false,
                    must_be_revoked: false,
                });
            }
            assert!(self.held.len() <= QUOTA.guest as usize);
            let of = self.held.values().filter(|serial| {
                let instance = &self.all[**serial];
                instance.function == request.function.0 && !instance.ended
            });
            assert!(of.count() <= QUOTA.function as usize);
        }
        self.replies.push_back(Reply { change: Change::Allocate(allocation), bytes, given });
        self.work();
    }

    /// The vectors that an allocation gives where the host does its part, or the status (order of checks, rows 9 to 21).
    /// `None` where the request cannot be judged.
    fn expected(&self, request: &Allocate) -> Option<Result<Vec<u16>, Status>> {
        let id = request.function.0;
        let Some((msi, msix)) = FUNCTIONS.get(usize::from(id)) else { return Some(Err(Status::NoFunction)) };
        if self.gone.contains(&id) {
            return Some(Err(Status::FunctionGone));
        }
        let vectors = match request.irq_type {
            IrqType::Intx => 1,
            IrqType::Msi => *msi,
            IrqType::Msix => *msix,
        };
        if u32::from(request.first) + u32::from(request.least.get()) > u32::from(vectors) {
            return Some(Err(Status::NoVector));
        }
        let of: Vec<_> = self
            .held
            .values()
            .map(|serial| &self.all[*serial])
            .filter(|i| i.function == id && !i.ended)
            .collect();
        if of.iter().any(|instance| instance.irq_type != request.irq_type) {
            return Some(Err(Status::Busy));
        }
        let room =
            (QUOTA.guest as usize - self.held.len()).min((QUOTA.function as usize).saturating_sub(of.len()));
        if room < usize::from(request.least.get()) {
            return Some(Err(Status::NoSpace));
        }
        if self.removed.contains(&id) {
            return Some(Err(Status::FunctionGone));
        }
        let end = vectors.min(self.limits[usize::from(id)]);
        let free: Vec<_> = (request.first..end)
            .filter(|vector| of.iter().all(|instance| instance.vector != *vector))
            .collect();
        let most = room.min(usize::from(request.most.get()));
        let picked = match request.layout {
            Layout::Any => free.into_iter().take(most).collect::<Vec<_>>(),
            Layout::Contiguous => {
                let runs = free.chunk_by(|a, b| a + 1 == *b).map(|run| &run[..run.len().min(most)]);
                // The first of the longest.
                runs.rev().max_by_key(|run| run.len()).unwrap_or_default().to_vec()
            }
        };
        if picked.len() < usize::from(request.least.get()) {
            return Some(Err(Status::NoSpace));
        }
        if request.layout == Layout::Contiguous && request.irq_type == IrqType::Msix && picked.len() > 1 {
            // Each simulated entry has an address of its own.
            return Some(Err(Status::NotContiguous));
        }
        Some(Ok(picked))
    }

    fn range(&mut self, request: SourceRequest, sources: SourceRange) {
        let serials: Vec<Option<Serial>> = (u64::from(sources.first.0)..sources.end())
            .map(|id| self.held.get(&SourceId(u32::try_from(id).ok()?)).copied())
            .collect();
        let wire = request.to_wire(sources);
        let change = Change::Sources(request, sources);
        if self.table.begin(&change).is_err() {
            // A driver with a mistake: where not all is held, the device does nothing.
            if serials.contains(&None) {
                assert_eq!(self.answer(wire.as_bytes()), Status::NoSource.to_head().as_bytes());
            }
            return;
        }
        let all: Option<Vec<_>> = serials.into_iter().collect();
        let pins = |world: &Self, all: &[Serial]| {
            all.iter().any(|serial| world.all[*serial].irq_type == IrqType::Intx)
        };
        let bytes = self.answer(wire.as_bytes());
        let status = Status::from_wire(u16::from_le_bytes([bytes[0], bytes[1]])).unwrap();
        match (&all, request) {
            (None, _) => assert_eq!(status, Status::NoSource, "{request:?} of {sources:?}"),
            (Some(all), SourceRequest::Unmask) if pins(self, all) => {
                assert!(matches!(status, Status::Ok | Status::HostError | Status::FunctionGone));
            }
            (Some(_), _) => assert_eq!(status, Status::Ok, "{request:?} of {sources:?}"),
        }
        let applies = status != Status::NoSource;
        let mut all: Vec<_> = all.unwrap_or_default().into_iter().filter(|_| applies).collect();
        // Pins fire by themselves, after the others have been made ready.
        all.sort_by_key(|serial| self.all[*serial].irq_type == IrqType::Intx);
        for serial in all {
            match request {
                SourceRequest::Free => self.release_one(serial),
                SourceRequest::Mask => {
                    self.all[serial].masked = true;
                    self.ready.retain(|ready| *ready != serial);
                }
                SourceRequest::Unmask => self.unmask(serial, status),
            }
        }
        self.replies.push_back(Reply { change, bytes, given: Vec::new() });
        self.work();
    }

    fn release_one(&mut self, serial: Serial) {
        self.held.retain(|_, held| *held != serial);
        self.ready.retain(|ready| *ready != serial);
    }

    fn unmask(&mut self, serial: Serial, status: Status) {
        let instance = &mut self.all[serial];
        let was_masked = std::mem::take(&mut instance.masked) || instance.unsure;
        if !was_masked || instance.ended {
            return;
        }
        let is_pin = instance.irq_type == IrqType::Intx;
        instance.unsure |= is_pin && status != Status::Ok;
        // What is pending already is delivered first, and masks the pin again.
        let fires = is_pin && status == Status::Ok && instance.fires == instance.delivered;
        if fires && std::mem::take(&mut instance.asserted) {
            instance.fires += 1;
        }
        let unsure = instance.unsure;
        self.ready.retain(|ready| !unsure || *ready != serial);
        self.queue(serial);
    }

    fn reset_function(&mut self, function: u16) {
        let request = ResetFunction { function: FunctionId(function) };
        let bytes = self.answer(request.to_wire().as_bytes());
        let expected = match FUNCTIONS.get(usize::from(function)) {
            None => Status::NoFunction,
            Some(_) if self.gone.contains(&function) => Status::FunctionGone,
            Some(_) => Status::Ok,
        };
        assert_eq!(bytes, expected.to_head().as_bytes());
        if expected == Status::Ok {
            self.release(|instance| instance.function == function);
        }
        let change = Change::ResetFunction(FunctionId(function));
        self.replies.push_back(Reply { change, bytes, given: Vec::new() });
        self.work();
    }

    fn take_replies(&mut self) {
        while let Some(Reply { change, bytes, given }) = self.replies.pop_front() {
            let mut serials = given.into_iter();
            let mut effects = Vec::new();
            let result = self.table.replied(&change, &bytes, |effect| effects.push(effect));
            assert_eq!(result.is_err(), read_head(&bytes).is_err(), "the reply makes sense: {result:?}");
            for effect in effects {
                match effect {
                    Effect::Given(source) => {
                        self.clients.insert(source.id, serials.next().unwrap());
                    }
                    Effect::Gone(FunctionId(function)) => {
                        assert!(self.gone.contains(&function), "function {function} is there");
                        self.hear_gone(function);
                    }
                    Effect::Fired(id) => {
                        let instance = &mut self.all[self.clients[&id]];
                        assert!(instance.kept > 0, "{instance:?}");
                        instance.told = instance.told.max(instance.kept);
                    }
                }
            }
            let table = &self.table;
            self.clients.retain(|id, _| table.function_of(*id).is_some());
        }
    }

    fn take_events(&mut self) {
        while let Some(records) = self.returned.pop_front() {
            for record in records {
                let mut verdict = self.table.event(record.event);
                if verdict == Verdict::AfterReplies {
                    self.take_replies();
                    verdict = self.table.event_after_replies(record.event);
                }
                self.tell(&record, verdict);
            }
        }
    }

    fn tell(&mut self, record: &Record, verdict: Verdict) {
        match verdict {
            Verdict::Fired(id) => {
                let serial = self.clients[&id];
                let (about, fires) = record.about.unwrap();
                assert_eq!(serial, about, "an interrupt of {:?} is told to another client", self.all[about]);
                self.all[serial].told = self.all[serial].told.max(fires);
            }
            Verdict::Revoked(id) => {
                let (about, _) = record.about.unwrap();
                assert_eq!(self.clients[&id], about);
            }
            Verdict::Gone(function) => self.hear_gone(function.0),
            Verdict::Nothing => {
                // Kept for the client, unless the source is on its way out.
                if let (Event::Interrupt { source, .. }, Some((about, fires))) = (record.event, record.about)
                    && self.clients.get(&source) == Some(&about)
                {
                    self.all[about].kept = self.all[about].kept.max(fires);
                }
            }
            Verdict::Changed(..) => {}
            Verdict::AfterReplies => panic!("the replies were processed"),
        }
    }

    fn hear_gone(&mut self, function: u16) {
        self.heard_gone.insert(function);
        let all = &self.all;
        self.clients.retain(|_, serial| all[*serial].function != function);
    }

    /// The host has exactly the vectors of the sources that there are.
    fn check_host(&self) {
        for (index, host) in (0..).zip(&self.hosts) {
            if self.removed.contains(&index) {
                continue;
            }
            let mut vectors: Vec<_> = self
                .held
                .values()
                .map(|serial| &self.all[*serial])
                .filter(|instance| instance.function == index && !instance.ended)
                .map(|instance| instance.vector)
                .collect();
            vectors.sort_unstable();
            assert_eq!(host.attached(), vectors, "function {index}");
        }
    }

    /// Everything gets time: what is pending is delivered, told, unmasked and delivered again.
    fn settle(&mut self) {
        for (index, host) in self.hosts.iter().enumerate() {
            host.fail(0);
            self.failing.remove(&(index as u16));
        }
        // Each round can bring a pin back, once.
        for _ in 0..4 {
            self.buffers.extend([64; 64]);
            self.work();
            self.take_events();
            self.take_replies();
            let ids: Vec<_> = self.table.iter().map(|(id, _)| id).collect();
            for sources in ranges(ids) {
                self.range(SourceRequest::Unmask, sources);
            }
        }
        self.buffers.extend([64; 64]);
        self.work();
        self.take_events();
        self.take_replies();
        for (id, serial) in &self.held {
            let instance = &self.all[*serial];
            assert_eq!(self.clients.get(id), Some(serial), "{instance:?} has its client");
            if !instance.ended {
                assert_eq!(instance.told, instance.fires, "an interrupt of {instance:?} is lost");
            }
            assert!(!instance.must_be_revoked || instance.revoked, "the end of {instance:?} is not told");
        }
        assert_eq!(self.clients.len(), self.held.len(), "the driver holds what it has");
        assert_eq!(self.heard_gone, self.gone);
        assert!(!self.bridge.device().has_events());
    }
}

fn operation() -> impl Strategy<Value = Operation> {
    let function = 0..FUNCTIONS.len();
    let irq_type = prop_oneof![1 => Just(IrqType::Intx), 4 => Just(IrqType::Msi), 3 => Just(IrqType::Msix)];
    let layout = prop_oneof![3 => Just(Layout::Any), 2 => Just(Layout::Contiguous)];
    let request = prop_oneof![
        2 => Just(SourceRequest::Free),
        2 => Just(SourceRequest::Mask),
        3 => Just(SourceRequest::Unmask)
    ];
    let first = prop_oneof![20 => 0..QUOTA.guest, 1 => Just(u32::MAX), 1 => any::<u32>()];
    let count = prop_oneof![10 => Just(1_u16), 10 => 1..6_u16, 1 => 1..=u16::MAX];
    prop_oneof![
        10 => (0..4_u16, irq_type, layout, 1..5_u16, 0..9_u16, prop_oneof![4 => Just(0), 3 => 0..8_u16, 1 => any::<u16>()])
            .prop_map(|(function, irq_type, layout, least, more, first)| {
                Operation::Allocate { function, irq_type, layout, least, more, first }
            }),
        12 => (request, first, count).prop_map(|(request, first, count)| Operation::Range(request, first, count)),
        1 => (0..4_u16).prop_map(Operation::ResetFunction),
        5 => Just(Operation::TakeReplies),
        5 => Just(Operation::TakeEvents),
        5 => vec(prop_oneof![3 => Just(1_usize), 1 => 1..5_usize], 1..4).prop_map(Operation::Give),
        5 => Just(Operation::Work),
        18 => (function.clone(), 0..10_u16).prop_map(|(function, vector)| Operation::Fire(function, vector)),
        2 => (function.clone(), 0..3_u32, 0..4_u32)
            .prop_map(|(function, after, count)| Operation::Fail(function, after, count)),
        1 => function.clone().prop_map(Operation::TakeAway),
        1 => function.clone().prop_map(Operation::Move),
        1 => function.clone().prop_map(Operation::Remove),
        1 => (function, prop_oneof![1 => 0..8_u16, 1 => Just(u16::MAX)])
            .prop_map(|(function, count)| Operation::Limit(function, count)),
        1 => prop_oneof![Just(Operation::Pause), Just(Operation::Reset), Just(Operation::Die)],
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever driver, host and VMM do: no interrupt is lost, doubled or told to the wrong client, no id is given twice,
    /// and nothing is left in the end.
    #[test]
    fn no_interrupt_is_lost_and_no_vector_leaked(operations in vec(operation(), 1..120)) {
        let mut world = World::new();
        for operation in &operations {
            world.run(operation);
        }
        world.settle();
        world.end();
    }
}
