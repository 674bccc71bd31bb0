// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sources through driver core, device core and simulated host, under random operations.
//!
//! Everything is real but the rings, which are queues here, so that a test decides what the device has returned and the
//! driver has not looked at yet. A model follows what the device answers and what the host does, and knows of every
//! interrupt: a test case fails where one is lost, doubled or told to the wrong client, where a vector or an eventfd is
//! leaked, and where a status is not the one of the specification.

mod device;
mod driver;
mod host;
mod operation;

use operation::{Operation, operation};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU16;
use vhost_device_irq::bridge::Bridge;
use vhost_device_irq::device::{Assigned, Quota};
use vhost_device_irq::host::HostFunction;
use vhost_device_irq::host::sim::SimFunction;
use virtio_irq_driver::{Change, Device as Driver, Slot, Sources, ranges};
use virtio_irq_proto::{
    Allocate, Delivery, Event, F_EVENT, F_NATIVE, FunctionFlags, FunctionId, IrqType, PciIds, SourceId,
    SourceRange, SourceRequest,
};
use zerocopy::IntoBytes;

const QUOTA: Quota = Quota { guest: 14, function: 9 };
const FEATURES: u64 = 1 << F_NATIVE | 1 << F_EVENT;
/// MSI and MSI-X vectors of each function; each has a pin.
const FUNCTIONS: [(u16, u16); 3] = [(8, 0), (1, 12), (32, 4)];

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
        let flags = FunctionFlags::NATIVE.with(FunctionFlags::EVENT, true);
        let functions = (0..).map(FunctionId).zip(&hosts).map(|(id, host)| {
            let function = host.describe().function(id, flags);
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
