// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A simulated function: for tests, and for a first try on any machine. It raises no interrupts.

use super::{Description, HostError, HostFunction, Interrupts, Isolation, has_ended};
use crate::device::Pair;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
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
    /// Calls that succeed, and the calls after these that fail.
    failures: (u32, u32),
    gone: bool,
    /// The type that sources use.
    sources: Option<IrqType>,
    /// What to signal for each vector that is attached.
    attached: BTreeMap<u16, OwnedFd>,
    /// The VMM has the interrupts.
    taken: bool,
    /// Becomes readable when its VMM ends.
    owner: Option<OwnedFd>,
    /// Fired while its pin was masked.
    pin: Pin,
    when_attached: Option<Hook>,
}

#[derive(Clone)]
struct Hook(Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

/// What the INTx pin is up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pin {
    masked: bool,
    asserted: bool,
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

/// As QEMU's devices have them, so that a guest with such a device finds its function.
const fn emulated(vendor: u16, device: u16, class_revision: u32) -> PciIds {
    PciIds { subsystem_vendor: 0x1af4, subsystem_device: 0x1100, ..model(vendor, device, class_revision) }
}

/// The models that `--device sim:KIND` knows.
pub const KINDS: [SimKind; 4] = [
    SimKind {
        name: "edu",
        what: "QEMU's edu device, 1 MSI vector",
        ids: emulated(0x1234, 0x11e8, 0x00ff_0010),
        msi_count: 1,
        msix_count: 0,
    },
    SimKind {
        name: "wcn6855",
        what: "a Wi-Fi card that ath11k drives, 32 MSI vectors",
        ids: PciIds { subsystem_device: 0x0108, ..model(0x17cb, 0x1103, 0x0280_0001) },
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
        ids: emulated(0x8086, 0x10c9, 0x0200_0001),
        msi_count: 1,
        msix_count: 10,
    },
];

impl SimFunction {
    /// A function with all of its vectors enabled. `index` keeps the messages of several functions apart.
    pub fn new(name: &str, ids: PciIds, msi_count: u16, msix_count: u16, index: u16) -> Self {
        let description =
            Description { ids, intx_count: 1, msi_count, msix_count, isolation: Isolation::Isolated };
        let state = State {
            enabled: u16::MAX,
            handle: 0x2b + 0x40 * u32::from(index),
            failures: (0, 0),
            gone: false,
            sources: None,
            taken: false,
            attached: BTreeMap::new(),
            owner: None,
            pin: Pin::default(),
            when_attached: None,
        };
        Self { name: name.into(), description, state: Arc::new(Mutex::new(state)) }
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
        self.fail_later(0, count);
    }

    /// Lets `count` calls fail after the next `after`, so that what takes several calls fails in its middle.
    pub fn fail_later(&self, after: u32, count: u32) {
        self.state().failures = (after, count);
    }

    /// Whether a call is still to fail.
    pub fn is_failing(&self) -> bool {
        self.state().failures.1 > 0
    }

    /// Lets a vector fire, as the hardware would. Returns whether anything was signalled.
    pub fn fire(&self, vector: u16) -> bool {
        let mut state = self.state();
        if state.sources == Some(IrqType::Intx) {
            state.pin.asserted = true;
            if state.pin.masked {
                return false;
            }
            state.pin = Pin { masked: true, asserted: false };
        }
        state.attached.get(&vector).is_some_and(|fd| rustix::io::write(fd, &1u64.to_ne_bytes()).is_ok())
    }

    /// Vectors that are attached now.
    pub fn attached(&self) -> Vec<u16> {
        self.state().attached.keys().copied().collect()
    }

    /// The type of interrupts that is enabled for sources.
    pub fn enabled_for_sources(&self) -> Option<IrqType> {
        self.state().sources
    }

    /// Runs this whenever vectors were attached, before whoever had them attached goes on.
    pub fn when_attached(&self, hook: Arc<dyn Fn() + Send + Sync>) {
        self.state().when_attached = Some(Hook(hook));
    }

    /// Takes the interrupts away from their sources, as a VMM does that enables them for the guest's capability. It has
    /// them until the sources are released or it [gives them back](SimFunction::give_back).
    pub fn take_away(&self) {
        let mut state = self.state();
        state.attached.clear();
        state.sources = None;
        state.taken = true;
    }

    /// The VMM disables the interrupts that it took.
    pub fn give_back(&self) {
        self.state().taken = false;
    }

    /// Gives it a VMM, which ends when `owner` becomes readable.
    pub fn owned_by(&self, owner: OwnedFd) {
        self.state().owner = Some(owner);
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

impl SimFunction {
    /// The state, unless the call is one that fails.
    fn working(&self, operation: &'static str) -> Result<std::sync::MutexGuard<'_, State>, HostError> {
        let mut state = self.state();
        if state.gone {
            return Err(HostError::Gone);
        }
        let (after, count) = &mut state.failures;
        if *after > 0 {
            *after -= 1;
        } else if *count > 0 {
            *count -= 1;
            return Err(HostError::failed(operation)(io::Error::from_raw_os_error(libc::EIO)));
        }
        Ok(state)
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
        let state = self.working("read a simulated message")?;
        if vectors.end() > u32::from(state.enabled) {
            return Err(HostError::NotEnabled);
        }
        let range = u32::from(vectors.first)..vectors.end();
        Ok(range.map(|vector| pair(vectors.irq_type, state.handle, vector)).collect())
    }

    fn interrupts(&self) -> Option<&dyn Interrupts> {
        Some(self)
    }
}

impl Interrupts for SimFunction {
    fn enable(&self, irq_type: IrqType, _end: u16) -> Result<u16, HostError> {
        let mut state = self.working("enable simulated interrupts")?;
        if state.owner.as_ref().is_some_and(has_ended) {
            return Err(HostError::NotReady);
        }
        if state.taken || state.sources.is_some_and(|enabled| enabled != irq_type) {
            return Err(HostError::Busy);
        }
        state.sources = Some(irq_type);
        let all = match irq_type {
            IrqType::Intx => self.description.intx_count,
            IrqType::Msi => self.description.msi_count,
            IrqType::Msix => self.description.msix_count,
        };
        Ok(all.min(state.enabled))
    }

    fn attach(&self, irq_type: IrqType, triggers: &[(u16, BorrowedFd<'_>)]) -> Result<Vec<Pair>, HostError> {
        let mut state = self.working("attach simulated vectors")?;
        if state.sources != Some(irq_type) {
            return Err(if state.taken { HostError::Busy } else { HostError::NotReady });
        }
        let copies = triggers.iter().map(|(vector, fd)| Ok((*vector, fd.try_clone_to_owned()?)));
        let copies: Vec<_> =
            copies.collect::<io::Result<_>>().map_err(HostError::failed("copy an eventfd"))?;
        state.attached.extend(copies);
        let (handle, hook) = (state.handle, state.when_attached.clone());
        drop(state);
        if let Some(Hook(hook)) = hook {
            hook();
        }
        Ok(triggers.iter().map(|(vector, _)| pair(irq_type, handle, u32::from(*vector))).collect())
    }

    fn detach(&self, _irq_type: IrqType, vectors: &[u16], last: bool) -> Result<(), HostError> {
        let mut state = self.state();
        for vector in vectors {
            state.attached.remove(vector);
        }
        if last {
            state.sources = None;
            state.taken = false;
            state.pin = Pin::default();
        }
        drop(state);
        self.working("release simulated vectors").map(drop)
    }

    fn unmask_pin(&self) -> Result<(), HostError> {
        let mut state = self.working("unmask a simulated pin")?;
        state.pin.masked = false;
        let fires = state.pin.asserted;
        drop(state);
        if fires {
            self.fire(0);
        }
        Ok(())
    }

    fn still_ours(&self) -> bool {
        let state = self.state();
        !state.taken && !state.owner.as_ref().is_some_and(has_ended)
    }

    fn owner(&self) -> io::Result<Option<OwnedFd>> {
        let state = self.state();
        state.owner.as_ref().filter(|_| state.sources.is_some()).map(OwnedFd::try_clone).transpose()
    }
}

fn pair(irq_type: IrqType, handle: u32, vector: u32) -> Pair {
    match irq_type {
        IrqType::Msix => Pair { address: remappable(handle + vector), data: 0 },
        IrqType::Msi => Pair { address: remappable(handle), data: vector },
        IrqType::Intx => Pair { address: 0, data: 0 },
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
