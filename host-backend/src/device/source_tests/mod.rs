// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sources: what a driver may do with them, and what becomes of them.

mod allocation;
mod delivery;
mod endings;
mod limits;

use super::*;
use std::num::NonZeroU16;
use std::time::Duration;
use virtio_irq_proto::{
    Allocate, Delivery, Event, Function, IrqType, Layout, ReplyError, ResetFunction, SourceList, SourceRange,
    SourceRequest, VectorRange,
};
use zerocopy::IntoBytes;

const ROOM: usize = 1 << 20;
const FIRST: FunctionId = FunctionId(3);
const SECOND: FunctionId = FunctionId(8);

fn function(id: FunctionId, msi_count: u16, msix_count: u16) -> Assigned {
    let function = Function {
        id,
        flags: FunctionFlags::NATIVE.with(FunctionFlags::EVENT, true),
        intx_count: 1,
        msi_count,
        msix_count,
        ..Function::default()
    };
    Assigned { function, refused: false }
}

/// A device, and a host that does as it is told.
struct Bench {
    device: Device,
    /// Number of leading vectors that the host can enable.
    available: u16,
    /// What each call is to fail with, by the order of the calls.
    failures: Vec<Option<Failure>>,
    /// What the host was told.
    log: Vec<String>,
    contiguous: bool,
}

impl Bench {
    fn new(quota: Quota) -> Self {
        let functions = vec![function(FIRST, 16, 64), function(SECOND, 1, 0)];
        let mut device = Device::new(functions, quota).unwrap();
        device.negotiated(u64::MAX);
        Self { device, available: u16::MAX, failures: Vec::new(), log: Vec::new(), contiguous: true }
    }

    fn roomy() -> Self {
        Self::new(Quota { guest: 32, function: 32 })
    }

    fn fails(&mut self) -> Option<Failure> {
        if self.failures.is_empty() { None } else { self.failures.remove(0) }
    }

    fn request(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut step = self.device.request(bytes, ROOM);
        loop {
            step = match step {
                Step::Done(reply) => return reply.bytes().to_vec(),
                Step::Enable(call) => {
                    self.log.push(format!(
                        "enable {} {:?} ..{}",
                        call.function(),
                        call.irq_type(),
                        call.end()
                    ));
                    let result = self.fails().map_or(Ok(self.available), Err);
                    self.device.enabled(call, result)
                }
                Step::Attach(call) => {
                    let vectors: Vec<_> = call.vectors().iter().map(|(vector, _)| *vector).collect();
                    self.log.push(format!("attach {} {vectors:?}", call.function()));
                    let step = u32::from(!self.contiguous);
                    let pair = |vector: &u16| Pair { address: 0xfee0_0418, data: u32::from(*vector) << step };
                    let result = self.fails().map_or(Ok(vectors.iter().map(pair).collect()), Err);
                    self.device.attached(call, result)
                }
                Step::Release(call) => {
                    self.note(call.detach());
                    self.device.released(call)
                }
                Step::UnmaskPin(call) => {
                    self.log.push(format!("unmask pin {}", call.function()));
                    let result = self.fails().map_or(Ok(()), Err);
                    self.device.pin_unmasked(call, result)
                }
                Step::ReadMessages(call) => {
                    let pairs = vec![Pair { address: 0xfee0_0418, data: 0 }; call.vectors().len()];
                    self.device.messages_read(call, Ok(pairs))
                }
            }
        }
    }

    fn note(&mut self, detach: &Detach) {
        let vectors: Vec<_> = detach.vectors.iter().map(|(vector, _)| *vector).collect();
        let last = if detach.last { ", disable" } else { "" };
        self.log.push(format!("detach {} {vectors:?}{last}", detach.function));
    }

    /// What the host is to release unasked, which it does.
    fn lost(&mut self) -> Vec<String> {
        let lost = self.device.take_lost();
        self.release(lost)
    }

    fn release(&mut self, lost: Lost) -> Vec<String> {
        self.log.clear();
        for detach in lost.detaches() {
            self.note(detach);
        }
        self.device.lost_released(lost);
        std::mem::take(&mut self.log)
    }

    /// Ids and vectors of what was allocated.
    fn allocate(&mut self, request: Allocate) -> Result<Vec<(u32, u16)>, ReplyError> {
        let reply = self.request(request.to_wire().as_bytes());
        let list: SourceList<'_> = request.parse_reply(&reply)?;
        Ok(list.sources.iter().map(|source| (source.id.get(), source.vector.get())).collect())
    }

    fn act(&mut self, request: SourceRequest, first: u32, count: u16) -> Result<(), ReplyError> {
        let range = SourceRange::new(first, count).unwrap();
        let reply = self.request(request.to_wire(range).as_bytes());
        request.parse_reply(&reply)
    }

    fn fire(&mut self, source: u32) {
        assert_eq!(self.device.fired(SourceId(source), Instant::now()), Watch::On);
    }

    /// Takes what waits, `room` events at a time.
    fn events(&mut self, room: usize) -> Vec<Event> {
        let mut all = Vec::new();
        while self.device.has_events() {
            let some = self.device.next_events(room);
            all.extend(some.iter().map(|raw| Event::parse(raw).unwrap()));
            self.device.events_taken(some.len());
        }
        all
    }

    fn interrupts(&mut self) -> Vec<u32> {
        let source = |event| match event {
            Event::Interrupt { source, .. } => source.0,
            other => panic!("{other:?}"),
        };
        self.events(2).into_iter().map(source).collect()
    }
}

fn some(function: FunctionId, irq_type: IrqType, least: u16, most: u16) -> Allocate {
    Allocate {
        function,
        irq_type,
        layout: Layout::Any,
        least: NonZeroU16::new(least).unwrap(),
        most: NonZeroU16::new(most).unwrap(),
        first: 0,
        delivery: Delivery::Event,
    }
}

fn refused<T>(status: Status) -> Result<T, ReplyError> {
    Err(ReplyError::Refused(status))
}

/// Two in a second, one at once.
fn limited() -> (Bench, Instant) {
    let mut bench = Bench::roomy();
    bench.device.limit_rate(RateLimit::per_second(std::num::NonZeroU32::new(2).unwrap()));
    bench.allocate(some(FIRST, IrqType::Msix, 3, 3)).unwrap();
    (bench, Instant::now())
}

const HALF: Duration = Duration::from_millis(500);
