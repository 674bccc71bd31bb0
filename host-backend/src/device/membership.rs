// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the operator changes while the guest runs: which functions there are, and whether it gets further sources.

use super::sources::Detach;
use super::{Assigned, Device, DuplicateId};
use virtio_irq_proto::{F_EVENT, Function, FunctionFlags, FunctionId, PciAddress};

impl Device {
    /// Functions can come later of which sources can be allocated: offers event delivery from the beginning, because
    /// the feature bits are what they are when a driver comes. To be called before there is one.
    pub fn expect_functions(&mut self) {
        let quota = self.sources.quota();
        if quota.guest > 0 && quota.function > 0 {
            self.features |= 1 << F_EVENT;
        }
    }

    /// The lowest id that a further function can have, if one is left.
    pub fn unused_id(&self) -> Option<FunctionId> {
        self.functions.unused_id()
    }

    /// Adds a function. No event says so: a driver that is asked for a function that it does not know reads the list
    /// again. Where event delivery is not offered it has none, whatever its flags say (IRQ-DEV-49).
    ///
    /// # Errors
    /// A function has the id, or had it since the last reset.
    pub fn add_function(&mut self, mut assigned: Assigned) -> Result<(), DuplicateId> {
        if self.features & 1 << F_EVENT == 0 {
            assigned.function.flags = assigned.function.flags.without(FunctionFlags::EVENT);
        }
        self.functions.add(assigned)
    }

    /// Where the guest sees a function, if that is known.
    pub fn place_of(&self, function: FunctionId) -> Option<PciAddress> {
        self.functions.find(function).ok()?.assigned.function.guest_address
    }

    /// Says where the guest sees a function, which the list tells from then on. Returns whether the function is there.
    pub fn place_function(&mut self, function: FunctionId, guest: Option<PciAddress>) -> bool {
        self.functions.place(function, guest)
    }

    /// Takes a function away, with all that the driver has of it, and tells the driver (IRQ-DEV-39, IRQ-DEV-75). The id
    /// stays taken until the next reset.
    ///
    /// Returns what the host has to release; nothing for a function that is not there.
    pub fn remove_function(&mut self, function: FunctionId) -> Option<Vec<Detach>> {
        if !self.functions.detach(function) {
            return None;
        }
        let held = self.sources.remove(self.sources.of(function).into_iter());
        self.events.function_gone(function);
        Some(held)
    }

    /// Gives the driver no further source, or does so again. Those that it holds stay. To the driver it is a quota that
    /// leaves no room.
    pub fn drain(&mut self, draining: bool) {
        self.sources.drain(draining);
    }

    /// Whether the driver gets no further source.
    pub fn is_draining(&self) -> bool {
        self.sources.is_draining()
    }

    /// Greatest number of sources that the driver can hold of the functions that there are, and of a further one.
    pub fn most_sources(&self, further: Option<&Function>) -> u64 {
        let quota = self.sources.quota();
        let of_one = |function: &Function| {
            let Function { flags, intx_count, msi_count, msix_count, .. } = function;
            // It has sources of one type at a time.
            let most = *intx_count.max(msi_count).max(msix_count);
            let event = flags.contains(FunctionFlags::EVENT);
            if event { u64::from(quota.function.min(u32::from(most))) } else { 0 }
        };
        let all = self.functions.present().chain(further).map(of_one);
        all.fold(0, u64::saturating_add).min(u64::from(quota.guest))
    }

    /// Number of sources that the driver holds.
    pub fn source_count(&self) -> usize {
        self.sources.states().count()
    }
}
