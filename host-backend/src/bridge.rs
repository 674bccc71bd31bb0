// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Joins the device core and the host side. Knows no transport.

mod attendant;
mod interrupts;
mod membership;
mod observer;

pub use attendant::Attendant;
pub use membership::MembershipError;
pub use observer::Observer;

use crate::counters::Counters;
use crate::deliveries::Deliveries;
use crate::device::{
    Assigned, Attach, Detach, Device, DuplicateId, Inspection, Lost, Pair, Quota, RateLimit, Reply, Step,
};
use crate::host::{HostError, HostFunction, Interrupts};
use crate::lookout::{Lookout, Occasion};
use crate::rate::Limited;
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Instant;
use tracing::warn;
use virtio_irq_proto::wire;
use virtio_irq_proto::{FunctionId, IrqType, VectorRange};

/// A device with its host. Shared by everything that serves it.
#[derive(Debug)]
pub struct Bridge {
    device: Mutex<Device>,
    /// Written to for a moment when the operator adds or takes away a function.
    functions: RwLock<BTreeMap<FunctionId, Arc<dyn HostFunction>>>,
    deliveries: Deliveries,
    /// Held from the core's word that a source pauses or goes on until it does.
    watching: Mutex<()>,
    /// A time, for whom any will do.
    began: Instant,
    lookout: Lookout,
    counters: Counters,
    observer: OnceLock<Observer>,
    attendant: OnceLock<Arc<dyn Attendant>>,
    /// A guest decides how often the host side fails.
    complaints: Limited,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// Two functions with one id.
    #[error(transparent)]
    SameId(#[from] DuplicateId),
    /// Interrupts cannot be watched for.
    #[error("cannot watch for interrupts: {0}")]
    Deliveries(std::io::Error),
}

impl Bridge {
    /// A device with these functions, each with what the host knows about it.
    ///
    /// # Errors
    /// Two functions with one id; the process is out of descriptors.
    pub fn new(functions: Vec<(Assigned, Box<dyn HostFunction>)>, quota: Quota) -> Result<Self, BridgeError> {
        let device = Device::new(functions.iter().map(|(assigned, _)| assigned.clone()).collect(), quota)?;
        let hosts = functions.into_iter().map(|(assigned, host)| (assigned.function.id, Arc::from(host)));
        Ok(Self {
            device: Mutex::new(device),
            functions: RwLock::new(hosts.collect()),
            deliveries: Deliveries::new().map_err(BridgeError::Deliveries)?,
            watching: Mutex::default(),
            began: Instant::now(),
            lookout: Lookout::new().map_err(BridgeError::Deliveries)?,
            counters: Counters::default(),
            observer: OnceLock::new(),
            attendant: OnceLock::new(),
            complaints: Limited::new(),
        })
    }

    /// Bounds how often each source may fire without delay.
    pub fn limit_rate(&self, limit: RateLimit) {
        self.device().limit_rate(limit);
    }

    /// The device core. Hold it briefly, and never during a call to the host.
    pub fn device(&self) -> MutexGuard<'_, Device> {
        // The core does not panic; were it to, its state is still that of whole operations.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Answers a request; see [`Device::request`].
    pub fn answer(&self, readable: &[u8], writable: usize) -> Reply {
        self.answer_with(readable, writable, |reply| reply)
    }

    /// [`Bridge::answer`] where `give` hands the reply to the driver.
    ///
    /// It does so before anybody can tell the driver of what the request changed: a reply to ALLOCATE comes before the
    /// first event of what it gives (IRQ-DEV-66). So the device core stays locked from the last step to its end. It is not
    /// while the host is called, and events of what there was before go their way.
    pub fn answer_with<R>(&self, readable: &[u8], writable: usize, give: impl FnOnce(Reply) -> R) -> R {
        let (mut device, mut step) = self.step(|device| device.request(readable, writable));
        let reply = loop {
            match step {
                Step::Done(reply) => break reply,
                call => {
                    drop(device);
                    (device, step) = self.call_host(call);
                }
            }
        };
        self.counters.answered(readable, reply.bytes());
        let given = give(reply);
        drop(device);
        self.settle();
        given
    }

    fn step(&self, step: impl FnOnce(&mut Device) -> Step) -> (MutexGuard<'_, Device>, Step) {
        let mut device = self.device();
        let step = step(&mut device);
        (device, step)
    }

    fn call_host(&self, step: Step) -> (MutexGuard<'_, Device>, Step) {
        match step {
            Step::Done(reply) => self.step(|_| Step::Done(reply)),
            Step::ReadMessages(call) => {
                let (id, vectors) = (call.function(), call.vectors());
                let result = self.call(id, format_args!(", {}", Range(vectors)), |function| {
                    function.read_messages(vectors)
                });
                self.step(|device| device.messages_read(call, result.map_err(|error| error.failure())))
            }
            Step::Enable(call) => {
                self.end_lost_sources(call.function());
                let (irq_type, end) = (call.irq_type(), call.end());
                let result = self.control(call.function(), |host| host.enable(irq_type, end));
                if result.is_ok() {
                    self.watch_owner(call.function());
                }
                self.step(|device| device.enabled(call, result.map_err(|error| error.failure())))
            }
            Step::Attach(call) => {
                let result = self.attach(&call);
                self.step(|device| device.attached(call, result.map_err(|error| error.failure())))
            }
            Step::Release(call) => {
                self.detach(call.detach());
                self.step(|device| device.released(call))
            }
            Step::UnmaskPin(call) => {
                let result = self.control(call.function(), |host| host.unmask_pin());
                self.step(|device| device.pin_unmasked(call, result.map_err(|error| error.failure())))
            }
        }
    }

    /// Forgets everything about the guest, and gives the host back what the guest held.
    pub fn reset(&self) {
        let held = self.device().reset();
        held.iter().for_each(|detach| self.detach(detach));
        self.settle();
    }

    /// The queues stopped, for a reset or a pause; see [`Device::stopped`].
    pub fn stop(&self) {
        let lost = self.device().stopped();
        self.release(lost);
        self.settle();
    }

    /// Gives the host what sources left that ended by themselves, and sees to it that the host is looked after while
    /// there is a reason to.
    fn settle(&self) {
        let (lost, needs_inspection) = {
            let mut device = self.device();
            (device.take_lost(), device.needs_inspection())
        };
        self.release(lost);
        if let Err(error) = self.lookout.tick(needs_inspection) {
            self.complaints.run(|| warn!("cannot set the clock: {error}"));
        }
    }

    fn release(&self, lost: Lost) {
        if !lost.detaches().is_empty() {
            lost.detaches().iter().for_each(|detach| self.detach(detach));
            self.device().lost_released(lost);
        }
    }

    /// The eventfds of the sources.
    pub fn deliveries(&self) -> &Deliveries {
        &self.deliveries
    }

    /// What is readable when [`Bridge::look_after`] has something to do.
    pub fn lookout(&self) -> &Lookout {
        &self.lookout
    }

    /// Finds out what changed on the host without anybody's saying so: a VMM that ended, interrupts that it took away,
    /// messages that moved. The driver is told by events.
    pub fn look_after(&self) {
        let occasion = self.lookout.occasion().unwrap_or_else(|error| {
            self.complaints.run(|| warn!("cannot look after the host: {error}"));
            Occasion::default()
        });
        if occasion.alarm {
            self.resume();
        }
        for id in occasion.ended {
            self.end_lost_sources(id);
        }
        if occasion.tick {
            let inspections = self.device().inspections();
            for inspection in &inspections {
                self.inspect(inspection);
            }
        }
        self.settle();
    }

    fn inspect(&self, inspection: &Inspection) {
        let id = inspection.function();
        if inspection.has_sources() && self.end_lost_sources(id) {
            return;
        }
        let Some(function) = self.function(id) else { return };
        for vectors in inspection.vectors() {
            // Nobody asked, so nobody is told that the host failed: the next look may find it well again.
            let result = function.read_messages(*vectors).map_err(|error| error.failure());
            self.device().inspected(inspection, *vectors, result);
        }
    }

    /// Revokes the sources of a function if the VMM took its interrupts away, and returns whether it did. Beside the
    /// regular looks this is where the answer matters: before more is built on them.
    fn end_lost_sources(&self, id: FunctionId) -> bool {
        let lost = |host: &dyn Interrupts| !host.still_ours();
        let lost = self.function(id).is_some_and(|function| function.interrupts().is_some_and(lost));
        if lost {
            let ended = {
                let mut device = self.device();
                device.revoked(id);
                device.take_lost()
            };
            self.release(ended);
        }
        lost
    }

    /// Has the end of the VMM noticed whose device is held now.
    fn watch_owner(&self, id: FunctionId) {
        let Some(function) = self.function(id) else { return };
        let Some(host) = function.interrupts() else { return };
        let watched = match host.owner() {
            Ok(None) => Ok(()),
            Ok(Some(owner)) => self.lookout.watch(id, owner),
            Err(error) => Err(error),
        };
        // The regular look finds it as well, later.
        if let Err(error) = watched {
            self.complaints.run(|| warn!("function {id}: cannot wait for the end of its VMM: {error}"));
        }
    }

    fn attach(&self, call: &Attach) -> Result<Vec<Pair>, HostError> {
        let sources = call.vectors().iter().map(|(_, source)| *source);
        let vectors = call.vectors().iter().map(|(vector, _)| *vector);
        self.control(call.function(), |host| {
            let eventfds = self.deliveries.open(sources.clone());
            let eventfds = eventfds.map_err(HostError::failed("make eventfds for its sources"))?;
            let triggers: Vec<_> = vectors.zip(eventfds.iter().map(|eventfd| eventfd.as_fd())).collect();
            let result = host.attach(call.irq_type(), &triggers);
            if result.is_err() {
                self.deliveries.close(sources);
            }
            result
        })
    }

    /// What fails here is reported and given up: the sources are the driver's no more, whatever the host does.
    fn detach(&self, detach: &Detach) {
        let vectors: Vec<u16> = detach.vectors.iter().map(|(vector, _)| *vector).collect();
        let result =
            self.control(detach.function, |host| host.detach(detach.irq_type, &vectors, detach.last));
        // The failure was logged.
        drop(result);
        if detach.last {
            self.lookout.forget(detach.function);
        }
        self.deliveries.close(detach.vectors.iter().map(|(_, source)| *source));
    }

    fn control<R>(
        &self,
        id: FunctionId,
        call: impl FnOnce(&dyn Interrupts) -> Result<R, HostError>,
    ) -> Result<R, HostError> {
        self.call(id, format_args!(""), |function| {
            function.interrupts().map_or(Err(HostError::NotReady), call)
        })
    }

    fn call<R>(
        &self,
        id: FunctionId,
        about: fmt::Arguments<'_>,
        call: impl FnOnce(&dyn HostFunction) -> Result<R, HostError>,
    ) -> Result<R, HostError> {
        let function = self.function(id).ok_or(HostError::Gone)?;
        let result = call(function.as_ref());
        result.inspect_err(|error| self.complain(function.as_ref(), about, error))
    }

    /// Says what failed, unless the driver can do something about it.
    fn complain(&self, function: &dyn HostFunction, about: fmt::Arguments<'_>, error: &HostError) {
        if !matches!(error, HostError::Failed { .. } | HostError::Gone) {
            return;
        }
        self.counters.host_failed();
        let (name, remedy) = (function.name(), error.remedy());
        self.complaints.run(|| {
            warn!(
                function = name,
                operation = error.operation(),
                errno = error.errno(),
                remedy,
                "{name}{about}: {error}; {remedy}"
            );
        });
    }

    /// The configuration space.
    pub fn config(&self) -> wire::Config {
        self.device().config()
    }
}

/// A range of vectors as people say it.
struct Range(VectorRange);

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0.irq_type {
            IrqType::Intx => "INTx",
            IrqType::Msi => "MSI",
            IrqType::Msix => "MSI-X",
        };
        match (self.0.first, self.0.end().saturating_sub(1)) {
            (first, last) if u32::from(first) == last => write!(f, "{name} vector {first}"),
            (first, last) => write!(f, "{name} vectors {first} to {last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_as_people_say_them() {
        let range = |irq_type, first, count| Range(VectorRange::of_messages(irq_type, first, count).unwrap());
        assert_eq!(range(IrqType::Msi, 5, 1).to_string(), "MSI vector 5");
        assert_eq!(range(IrqType::Msix, 5, 3).to_string(), "MSI-X vectors 5 to 7");
    }
}
