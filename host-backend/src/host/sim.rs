// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A simulated function: for tests, and for a first try on any machine. It raises no interrupts.

use super::{Description, HostError, HostFunction, Isolation};
use crate::device::Pair;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use virtio_irq_proto::{IrqType, PciIds, VectorRange};

/// A simulated function. Clones are the same function.
#[derive(Clone, Debug)]
pub struct SimFunction {
    name: Arc<str>,
    description: Description,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// Number of leading vectors that are enabled.
    enabled: u16,
    /// Remapping table index of vector 0. The first bytes of what the guest is told follow from it.
    handle: u32,
    failures: u32,
    gone: bool,
}

/// A model to simulate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimKind {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    /// Its ids.
    pub ids: PciIds,
    /// Number of MSI vectors.
    pub msi_count: u16,
    /// Number of MSI-X table entries.
    pub msix_count: u16,
}

const fn model(vendor: u16, device: u16, class_revision: u32) -> PciIds {
    PciIds { vendor, device, subsystem_vendor: vendor, subsystem_device: 1, class_revision }
}

/// The models that `--device sim:KIND` knows.
pub const KINDS: [SimKind; 4] = [
    SimKind {
        name: "edu",
        what: "QEMU's edu device, 1 MSI vector",
        // As QEMU's edu has them, so that a guest with that device finds its function.
        ids: PciIds {
            subsystem_vendor: 0x1af4,
            subsystem_device: 0x1100,
            ..model(0x1234, 0x11e8, 0x00ff_0010)
        },
        msi_count: 1,
        msix_count: 0,
    },
    SimKind {
        name: "wcn6855",
        what: "a Wi-Fi card that ath11k drives, 32 MSI vectors",
        ids: model(0x17cb, 0x1103, 0x0280_0001),
        msi_count: 32,
        msix_count: 0,
    },
    SimKind {
        name: "wcn7850",
        what: "a Wi-Fi card that ath12k drives, 32 MSI vectors",
        ids: model(0x17cb, 0x1107, 0x0280_0001),
        msi_count: 32,
        msix_count: 0,
    },
    SimKind {
        name: "igb",
        what: "an Ethernet controller, 10 MSI-X vectors",
        ids: model(0x8086, 0x10c9, 0x0200_0001),
        msi_count: 1,
        msix_count: 10,
    },
];

impl SimFunction {
    /// A function with all of its vectors enabled. `index` keeps the messages of several functions apart.
    pub fn new(name: &str, ids: PciIds, msi_count: u16, msix_count: u16, index: u16) -> Self {
        let description =
            Description { ids, intx_count: 1, msi_count, msix_count, isolation: Isolation::Isolated };
        let state =
            State { enabled: u16::MAX, handle: 0x2b + 0x40 * u32::from(index), failures: 0, gone: false };
        Self { name: name.into(), description, state: Arc::new(Mutex::new(state)) }
    }

    /// The same, on a platform that does not check its messages.
    #[must_use]
    pub fn not_isolated(mut self) -> Self {
        self.description.isolation = Isolation::Missing("it is simulated so");
        self
    }

    /// Enables the first `count` vectors, and no others.
    pub fn enable(&self, count: u16) {
        self.state().enabled = count;
    }

    /// Moves every message to another place.
    pub fn move_messages(&self) {
        self.state().handle += 0x100;
    }

    /// Lets the next `count` calls fail.
    pub fn fail(&self, count: u32) {
        self.state().failures = count;
    }

    /// Takes the function off the host.
    pub fn remove(&self) {
        self.state().gone = true;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Every field is valid at any time, so a panic elsewhere leaves nothing half done here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostFunction for SimFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn describe(&self) -> Description {
        self.description
    }

    /// Pairs in VT-d's remappable format: the address carries a table index, with the subhandle in the data of an
    /// MSI block, or an index for every entry of an MSI-X table.
    fn read_messages(&self, vectors: VectorRange) -> Result<Vec<Pair>, HostError> {
        let mut state = self.state();
        if state.gone {
            return Err(HostError::Gone);
        }
        if state.failures > 0 {
            state.failures -= 1;
            return Err(HostError::failed("read a simulated message")(io::Error::from_raw_os_error(
                libc::EIO,
            )));
        }
        if vectors.end() > u32::from(state.enabled) {
            return Err(HostError::NotEnabled);
        }
        let range = u32::from(vectors.first)..vectors.end();
        Ok(range
            .map(|vector| match vectors.irq_type {
                IrqType::Msix => Pair { address: remappable(state.handle + vector), data: 0 },
                IrqType::Msi | IrqType::Intx => Pair { address: remappable(state.handle), data: vector },
            })
            .collect())
    }
}

/// Address of a VT-d message for a table index, subhandle valid (VT-d specification, "Interrupt Requests in
/// Remappable Format").
fn remappable(handle: u32) -> u64 {
    const SUBHANDLE_VALID: u64 = 1 << 3;
    const REMAPPABLE: u64 = 1 << 4;
    let handle = u64::from(handle);
    0xfee0_0000 | (handle & 0x7fff) << 5 | REMAPPABLE | SUBHANDLE_VALID | (handle >> 15 & 1) << 2
}
