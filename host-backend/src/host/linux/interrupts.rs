// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sources of a function, on the VFIO device that its VMM opened.

use super::Registers;
use crate::device::Pair;
use crate::host::{HostError, Interrupts, has_ended};
use crate::rate::Limited;
use crate::vfio::{self, Claim, ClaimError, DeviceSupply, Host, InterruptError, Ioctl, VfioDevice};
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing::{info, warn};
use virtio_irq_proto::{IrqType, PciAddress, VectorRange};

/// Least number of MSI-X vectors that are enabled with the first allocation, if the function has as many. The number stays
/// until the last source is freed: what is enabled cannot grow on every host.
const LEAST_BLOCK: u16 = 64;

/// Where the VFIO device is had. A test can stand in for it.
pub(super) trait Devices: fmt::Debug + Send + Sync {
    type Device: Ioctl + fmt::Debug + Send;

    /// The device, if a VMM has it now.
    ///
    /// # Errors
    /// As [`DeviceSupply::claim`].
    fn claim(&self) -> Result<Claim<Self::Device>, ClaimError>;
}

impl Devices for Arc<DeviceSupply> {
    type Device = VfioDevice;

    fn claim(&self) -> Result<Claim, ClaimError> {
        DeviceSupply::claim(self)
    }
}

/// Control over the interrupts of one function.
#[derive(Debug)]
pub(super) struct VfioInterrupts<S: Devices = Arc<DeviceSupply>> {
    supply: S,
    host: Host,
    address: PciAddress,
    registers: Arc<Registers>,
    /// The device, while there are sources. A device that is held cannot be opened by the next VMM.
    held: Mutex<Option<Held<S::Device>>>,
    /// A guest decides how often it takes interrupts back, or makes an allocation fail.
    complaints: Limited,
}

#[derive(Debug)]
struct Held<D: Ioctl> {
    interrupts: vfio::Interrupts<D>,
    /// See [`Claim::owner`].
    owner: Option<OwnedFd>,
}

impl<S: Devices> VfioInterrupts<S> {
    pub(super) fn new(supply: S, host: Host, address: PciAddress, registers: Arc<Registers>) -> Self {
        Self { supply, host, address, registers, held: Mutex::new(None), complaints: Limited::new() }
    }

    fn held(&self) -> MutexGuard<'_, Option<Held<S::Device>>> {
        // What is in there undoes itself when it is dropped.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self) -> Result<Held<S::Device>, HostError> {
        let Claim { device, owner } = self.supply.claim().map_err(|error| match error {
            ClaimError::NotYet(_) => HostError::NotReady,
            error => HostError::failed("get the function's VFIO device")(io::Error::other(error)),
        })?;
        Ok(Held { interrupts: vfio::Interrupts::new(device, &self.host, self.address), owner })
    }

    fn enable_block(
        &self,
        interrupts: &mut vfio::Interrupts<S::Device>,
        irq_type: IrqType,
        end: u16,
    ) -> Result<u16, HostError> {
        let most = match irq_type {
            // The pin is enabled when it gets its eventfd.
            IrqType::Intx => return in_use(interrupts.active()).map(|()| 1),
            IrqType::Msi => u16::MAX,
            IrqType::Msix => end.max(LEAST_BLOCK),
        };
        match interrupts.enable(irq_type, 1, most) {
            Ok(count) => Ok(count),
            Err(InterruptError::TooFew { .. } | InterruptError::NoVector { .. }) => Ok(0),
            Err(error) => Err(host_error("enable the function's interrupts", error)),
        }
    }

    fn read_back(
        &self,
        irq_type: IrqType,
        triggers: &[(u16, BorrowedFd<'_>)],
    ) -> Result<Vec<Pair>, HostError> {
        if irq_type == IrqType::Intx {
            return Ok(vec![Pair { address: 0, data: 0 }; triggers.len()]);
        }
        let mut pairs = Vec::with_capacity(triggers.len());
        for run in triggers.chunk_by(follows) {
            let (Some((first, _)), Ok(count)) = (run.first(), u16::try_from(run.len())) else { continue };
            let Ok(vectors) = VectorRange::of_messages(irq_type, *first, count) else { continue };
            pairs.extend(self.registers.read_messages(vectors)?);
        }
        Ok(pairs)
    }
}

impl<S: Devices> Interrupts for VfioInterrupts<S> {
    fn enable(&self, irq_type: IrqType, end: u16) -> Result<u16, HostError> {
        let mut held = self.held();
        if let Some((enabled, count)) = held.as_ref().and_then(|held| held.interrupts.enabled()) {
            return if enabled == irq_type { Ok(count) } else { Err(HostError::Busy) };
        }
        let mut claimed = self.claim()?;
        let count = self.enable_block(&mut claimed.interrupts, irq_type, end)?;
        *held = Some(claimed);
        Ok(count)
    }

    fn attach(&self, irq_type: IrqType, triggers: &[(u16, BorrowedFd<'_>)]) -> Result<Vec<Pair>, HostError> {
        let mut held = self.held();
        let interrupts = &mut held.as_mut().ok_or(HostError::NotReady)?.interrupts;
        let mut attached = 0;
        let result = triggers.chunk_by(follows).try_for_each(|run| {
            let eventfds: Vec<_> = run.iter().map(|(_, eventfd)| *eventfd).collect();
            match (irq_type, run.first(), eventfds.first()) {
                (IrqType::Intx, _, Some(eventfd)) => interrupts.enable_intx(*eventfd),
                (_, Some((first, _)), _) => interrupts.arm(*first, &eventfds),
                _ => Ok(()),
            }?;
            attached += run.len();
            Ok(())
        });
        let pairs = match result {
            Ok(()) => self.read_back(irq_type, triggers),
            Err(error) => Err(host_error("attach vectors to their sources", error)),
        };
        if pairs.is_err() {
            let vectors: Vec<_> = triggers.iter().take(attached).map(|(vector, _)| *vector).collect();
            if let Err(error) = disarm(interrupts, irq_type, &vectors) {
                self.complaints.run(|| warn!("{error}"));
            }
        }
        pairs
    }

    fn detach(&self, irq_type: IrqType, vectors: &[u16], last: bool) -> Result<(), HostError> {
        let mut held = self.held();
        let Some(Held { interrupts, .. }) = held.as_mut() else { return Ok(()) };
        let result = if last { interrupts.release() } else { disarm(interrupts, irq_type, vectors) };
        if last {
            *held = None;
        }
        result.map_err(|error| host_error("release vectors", error))
    }

    fn unmask_pin(&self) -> Result<(), HostError> {
        let held = self.held();
        let interrupts = &held.as_ref().ok_or(HostError::NotReady)?.interrupts;
        interrupts.unmask_intx().map_err(|error| host_error("unmask the pin", error))
    }

    fn still_ours(&self) -> bool {
        let held = self.held();
        let Some(Held { interrupts, owner }) = held.as_ref() else { return true };
        let lost = match interrupts.still_ours() {
            _ if owner.as_ref().is_some_and(has_ended) => "the VMM ended".to_owned(),
            Err(lost) => lost.to_string(),
            Ok(()) => return true,
        };
        self.complaints.run(|| info!("{}: its sources end: {lost}", self.address));
        false
    }

    fn owner(&self) -> io::Result<Option<OwnedFd>> {
        let held = self.held();
        held.as_ref().and_then(|held| held.owner.as_ref()).map(OwnedFd::try_clone).transpose()
    }
}

/// Whether two triggers are of consecutive vectors, which one call can set up.
fn follows(a: &(u16, BorrowedFd<'_>), b: &(u16, BorrowedFd<'_>)) -> bool {
    a.0.checked_add(1) == Some(b.0)
}

fn disarm(
    interrupts: &mut vfio::Interrupts<impl Ioctl>,
    irq_type: IrqType,
    vectors: &[u16],
) -> Result<(), InterruptError> {
    if irq_type == IrqType::Intx {
        return interrupts.release();
    }
    let runs = vectors.chunk_by(|a, b| a.checked_add(1) == Some(*b));
    let results = runs.map(|run| match (run.first(), run.last()) {
        (Some(first), Some(last)) => interrupts.disarm(*first..last.saturating_add(1)),
        _ => Ok(()),
    });
    // All of them, whatever becomes of one.
    results.fold(Ok(()), Result::and)
}

fn in_use(active: Result<Option<IrqType>, InterruptError>) -> Result<(), HostError> {
    match active {
        Ok(None | Some(IrqType::Intx)) => Ok(()),
        Ok(Some(_)) => Err(HostError::Busy),
        Err(error) => Err(host_error("find out what is enabled", error)),
    }
}

fn host_error(operation: &'static str, error: InterruptError) -> HostError {
    match error {
        InterruptError::InUse { .. } => HostError::Busy,
        error => {
            let source =
                error.raw_os_error().map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error);
            HostError::failed(operation)(source)
        }
    }
}
