// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hearing of frontends from beside the data path.

use super::Bridge;
use std::fmt;
use std::sync::Arc;

/// Somebody who has to do something for each frontend. The calls are made where a guest is served, and must not wait.
pub trait Attendant: fmt::Debug + Send + Sync {
    /// A frontend begins to set the device up, or its guest's driver does. How often is up to them.
    fn attend(&self);

    /// The frontend is gone. The next one is not served before this returns.
    fn left(&self, bridge: &Bridge);
}

impl Bridge {
    /// Who attends to frontends. To be said once, before one is served.
    pub fn set_attendant(&self, attendant: Arc<dyn Attendant>) {
        // There is one VMM to ask.
        let _ = self.attendant.set(attendant);
    }

    pub(crate) fn attend(&self) {
        if let Some(attendant) = self.attendant.get() {
            attendant.attend();
        }
    }

    pub(crate) fn frontend_left(&self) {
        if let Some(attendant) = self.attendant.get() {
            attendant.left(self);
        }
    }
}
