// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Functions that come and go while the guest runs, as the operator says.
//!
//! This runs beside the thread that serves the guest, which can be in a call to the host for the same function. The
//! device core then refuses what comes of that call, and a function that nobody has any more gives back what it holds.

use super::Bridge;
use crate::device::{Assigned, Detach, DuplicateId};
use crate::host::HostFunction;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use virtio_irq_proto::FunctionId;

/// Why the operator cannot add or take away a function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum MembershipError {
    #[error(
        "function id {0} is in use, or was since the guest's driver last reset the device: choose another id=, or none"
    )]
    IdTaken(FunctionId),
    #[error("there is no function {0}: `status` lists those there are")]
    NotThere(FunctionId),
}

impl Bridge {
    pub(super) fn function(&self, id: FunctionId) -> Option<Arc<dyn HostFunction>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// The name of each function that is there, as the operator gave it.
    pub fn names(&self) -> BTreeMap<FunctionId, String> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.iter().map(|(id, function)| (*id, function.name().to_owned())).collect()
    }

    /// Adds a function while the guest runs.
    ///
    /// # Errors
    /// The id was used since the last reset.
    pub fn attach_function(
        &self,
        assigned: Assigned,
        host: Box<dyn HostFunction>,
    ) -> Result<(), MembershipError> {
        let id = assigned.function.id;
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        self.device().add_function(assigned).map_err(|DuplicateId(id)| MembershipError::IdTaken(id))?;
        functions.insert(id, Arc::from(host));
        Ok(())
    }

    /// Takes a function away while the guest runs: gives the host back what the guest held of it, and tells the guest's
    /// driver. One that left the host by itself is taken off the books. Returns how many sources ended.
    ///
    /// # Errors
    /// It is not there.
    pub fn detach_function(&self, id: FunctionId) -> Result<usize, MembershipError> {
        if self.function(id).is_none() {
            return Err(MembershipError::NotThere(id));
        }
        let held = {
            let mut device = self.device();
            let held = device.remove_function(id).unwrap_or_default();
            // Before anybody can be given these ids again.
            let sources = held.iter().flat_map(|detach| &detach.vectors).map(|(_, source)| *source);
            self.deliveries.close(sources);
            held
        };
        for Detach { irq_type, vectors, last, .. } in &held {
            let vectors: Vec<u16> = vectors.iter().map(|(vector, _)| *vector).collect();
            // The failure was logged, and the function is given up either way.
            let _ = self.control(id, |host| host.detach(*irq_type, &vectors, *last));
        }
        let function = self.functions.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        self.lookout.forget(id);
        // What this drops can take its time, with nobody waiting for the lock.
        drop(function);
        // The driver is to be told.
        self.deliveries.ring();
        Ok(held.iter().map(|detach| detach.vectors.len()).sum())
    }
}
