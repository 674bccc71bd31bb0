// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the host and the VMM do, and what the host has to have after it.

use super::operation::Operation;
use super::{Instance, World};
use virtio_irq_proto::IrqType;

impl World {
    pub(super) fn host(&mut self, operation: &Operation) {
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
    pub(super) fn stop(&mut self) {
        self.bridge.stop();
        self.end_sources(|_| true);
        for serial in self.held.values() {
            self.all[*serial].must_be_revoked |= !self.all[*serial].revoked;
        }
    }

    pub(super) fn end_sources(&mut self, which: impl Fn(&Instance) -> bool) {
        for serial in self.held.values() {
            let instance = &mut self.all[*serial];
            instance.ended |= which(instance);
        }
        let all = &self.all;
        self.ready.retain(|serial| !all[*serial].ended);
    }

    /// The machine is another one, or begins anew.
    pub(super) fn forget(&mut self) {
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
    pub(super) fn end(&mut self) {
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

    pub(super) fn fire(&mut self, function: usize, vector: u16) {
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

    /// The host has exactly the vectors of the sources that there are.
    pub(super) fn check_host(&self) {
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
}
