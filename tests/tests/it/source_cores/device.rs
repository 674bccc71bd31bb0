// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device answers and delivers, and what it has to by the specification.

use super::{FUNCTIONS, Instance, QUOTA, Record, Reply, Serial, World};
use std::collections::BTreeSet;
use std::num::NonZeroU16;
use virtio_irq_driver::{Allocation, Change, events};
use virtio_irq_proto::{
    Allocate, Event, FunctionId, FunctionList, IrqType, Layout, ListFunctions, Request, ResetFunction,
    SourceId, SourceList, SourceRange, SourceRequest, Status, read_head,
};
use zerocopy::IntoBytes;

impl World {
    /// Something of a source is pending: it waits for its turn unless it is masked.
    pub(super) fn queue(&mut self, serial: Serial) {
        let instance = &self.all[serial];
        let waits = !instance.masked && !instance.unsure && !instance.ended;
        if waits && instance.fires > instance.delivered && !self.ready.contains(&serial) {
            self.ready.push_back(serial);
        }
    }

    /// The device's worker: as after any notification.
    pub(super) fn work(&mut self) {
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
    pub(super) fn record(&mut self, event: Event) -> Record {
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
    pub(super) fn answer(&mut self, request: &[u8]) -> Vec<u8> {
        self.work();
        let room = Request::parse(request).unwrap().reply_size();
        let reply = self.bridge.answer(request, room).bytes().to_vec();
        assert!(reply.len() >= 8 && reply.len() <= room);
        self.find_gone();
        reply
    }

    /// Functions that are not listed any more, and with them their sources.
    pub(super) fn find_gone(&mut self) {
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

    pub(super) fn release(&mut self, which: impl Fn(&Instance) -> bool) {
        let all = &self.all;
        self.held.retain(|_, serial| !which(&all[*serial]));
        let held: BTreeSet<_> = self.held.values().copied().collect();
        self.ready.retain(|serial| held.contains(serial));
    }

    pub(super) fn allocate(&mut self, request: Allocate) {
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
    pub(super) fn expected(&self, request: &Allocate) -> Option<Result<Vec<u16>, Status>> {
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

    pub(super) fn range(&mut self, request: SourceRequest, sources: SourceRange) {
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

    pub(super) fn release_one(&mut self, serial: Serial) {
        self.held.retain(|_, held| *held != serial);
        self.ready.retain(|ready| *ready != serial);
    }

    pub(super) fn unmask(&mut self, serial: Serial, status: Status) {
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

    pub(super) fn reset_function(&mut self, function: u16) {
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
}
