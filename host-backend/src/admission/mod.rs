// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which functions the guest gets: as the operator says it, and opened, for all that hand functions to a guest.

mod files;
mod spec;

pub use files::TooFewFiles;
pub(crate) use files::allow_files_for;
pub use spec::{DeviceSpec, Model, SpecError};

use crate::bridge::{Bridge, MembershipError};
use crate::device::Assigned;
use crate::host::linux::{LinuxFunction, OpenError, Sysfs};
use crate::host::sim::SimFunction;
use crate::host::{HostFunction, Isolation};
use crate::opener::Opener;
use crate::vfio::{ClaimError, DeviceSupply, Host, SupplyError, ToldProcess};
use std::sync::Arc;
use tracing::{info, warn};
use virtio_irq_proto::{Function, FunctionFlags, FunctionId, PciAddress};

/// The same for the functions of the command line and for those that are attached later.
#[derive(Debug)]
pub struct Admission {
    allow_unsafe_interrupts: bool,
    opener: Option<Opener>,
    /// The VMM's process, where somebody finds that out.
    vmm: Option<ToldProcess>,
}

/// Why a function is not let in.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum AdmissionError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Vfio(#[from] SupplyError),
    #[error(
        "PCI function {name} is not isolated: {reason}. A guest could make it raise any interrupt of this host; \
         turn interrupt remapping on, or accept the risk with --allow-unsafe-interrupts"
    )]
    NotIsolated { name: String, reason: &'static str },
}

/// Why a function is not given to a guest that may run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub(crate) enum AttachError {
    #[error("{name} is there already, as function {id}: detach that one first")]
    There { name: String, id: FunctionId },
    #[error("all 65536 function ids are in use until the guest resets the device")]
    NoId,
    #[error(transparent)]
    Open(#[from] AdmissionError),
    #[error(transparent)]
    Files(#[from] TooFewFiles),
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

/// A function that the guest was given.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) name: String,
    pub(crate) function: Function,
}

impl Admission {
    /// Lets functions in that are not isolated if `allow_unsafe_interrupts`. A confined process needs the opener. The VFIO
    /// devices for which no other place is given come from `vmm`, if there is one.
    pub fn new(allow_unsafe_interrupts: bool, opener: Option<Opener>, vmm: Option<ToldProcess>) -> Self {
        Self { allow_unsafe_interrupts, opener, vmm }
    }

    fn host(&self) -> Host {
        Host::here().through(self.opener.clone())
    }

    /// Whether this process has the function's device open and may be asked for it.
    pub(crate) fn claim_from(&self, vmm: &ToldProcess, function: PciAddress) -> Result<(), ClaimError> {
        DeviceSupply::out_of(vmm, &self.host(), function).claim().map(drop)
    }

    /// Opens a function and lists it to the guest, which may run.
    pub(crate) fn attach(&self, bridge: &Bridge, spec: &DeviceSpec) -> Result<Attached, AttachError> {
        if let Model::Host(address, _) = &spec.model {
            let name = address.to_string();
            if let Some((id, _)) = bridge.names().into_iter().find(|(_, other)| *other == name) {
                return Err(AttachError::There { name, id });
            }
        }
        let id = spec.id.map(FunctionId).or_else(|| bridge.device().unused_id()).ok_or(AttachError::NoId)?;
        let (assigned, host) = self.open(spec, id)?;
        let (name, function) = (host.name().to_owned(), assigned.function);
        let sources = bridge.device().most_sources(Some(&function));
        allow_files_for(sources)?;
        bridge.attach_function(assigned, host)?;
        Ok(Attached { name, function })
    }

    /// Opens a function of the host, or simulates one, and finds out what the guest is to be told of it.
    pub(crate) fn open(
        &self,
        spec: &DeviceSpec,
        id: FunctionId,
    ) -> Result<(Assigned, Box<dyn HostFunction>), AdmissionError> {
        let host: Box<dyn HostFunction> = match &spec.model {
            Model::Host(address, source) => {
                let vfio = match (source, &self.vmm) {
                    (Some(source), _) => Some(source.open(&self.host(), *address)?),
                    (None, Some(vmm)) => Some(DeviceSupply::out_of(vmm, &self.host(), *address)),
                    (None, None) => None,
                };
                let vfio = vfio.map(Arc::new);
                Box::new(LinuxFunction::open(&Sysfs::here().through(self.opener.clone()), *address, vfio)?)
            }
            Model::Sim { name, ids, msi_count, msix_count } => {
                Box::new(SimFunction::new(name, *ids, *msi_count, *msix_count, id.0))
            }
        };
        let what = host.describe();
        let isolated = what.isolation == Isolation::Isolated;
        if let Isolation::Missing(reason) = what.isolation {
            if !self.allow_unsafe_interrupts {
                return Err(AdmissionError::NotIsolated { name: host.name().to_owned(), reason });
            }
            warn!(
                "{} is not isolated ({reason}), and allowed to be by --allow-unsafe-interrupts",
                host.name()
            );
        }
        let native = what.msi_count > 0 || what.msix_count > 0;
        if !native {
            warn!("{} has neither MSI nor MSI-X: there are no messages to tell", host.name());
        }
        info!(
            "function {id}: {} [{:04x}:{:04x}], {} MSI and {} MSI-X vectors",
            host.name(),
            what.ids.vendor,
            what.ids.device,
            what.msi_count,
            what.msix_count
        );
        let flags = FunctionFlags::default()
            .with(FunctionFlags::ISOLATED, isolated)
            .with(FunctionFlags::STABLE, isolated)
            .with(FunctionFlags::NATIVE, native)
            .with(FunctionFlags::EVENT, host.interrupts().is_some());
        let function = Function { guest_address: spec.guest, ..what.function(id, flags) };
        Ok((Assigned { function, refused: false }, host))
    }
}
