// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which functions are let in, and how they are opened.

use super::{DeviceSpec, Error, Model};
use crate::device::Assigned;
use crate::host::linux::{LinuxFunction, Sysfs};
use crate::host::sim::SimFunction;
use crate::host::{HostFunction, Isolation};
use crate::opener::Opener;
use crate::vfio::{DeviceSource, Host};
use std::sync::Arc;
use tracing::{info, warn};
use virtio_irq_proto::{Function, FunctionFlags, FunctionId};

/// The same for the functions of the command line and for those that are attached later.
#[derive(Debug)]
pub struct Admission {
    allow_unsafe_interrupts: bool,
    opener: Option<Opener>,
}

impl Admission {
    /// Lets functions in that are not isolated if `allow_unsafe_interrupts`. A confined process needs the opener.
    pub fn new(allow_unsafe_interrupts: bool, opener: Option<Opener>) -> Self {
        Self { allow_unsafe_interrupts, opener }
    }

    /// Opens a function of the host, or simulates one, and finds out what the guest is to be told of it.
    pub(crate) fn open(
        &self,
        spec: &DeviceSpec,
        id: FunctionId,
    ) -> Result<(Assigned, Box<dyn HostFunction>), Error> {
        let host: Box<dyn HostFunction> = match &spec.model {
            Model::Host(address, source) => {
                let open = |source: &DeviceSource| {
                    source.open(&Host::here().through(self.opener.clone()), *address).map(Arc::new)
                };
                let vfio = source.as_ref().map(open).transpose()?;
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
                return Err(Error::NotIsolated { name: host.name().to_owned(), reason });
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
        let function = Function {
            id,
            flags: FunctionFlags::default()
                .with(FunctionFlags::ISOLATED, isolated)
                .with(FunctionFlags::STABLE, isolated)
                .with(FunctionFlags::NATIVE, native)
                .with(FunctionFlags::EVENT, host.interrupts().is_some()),
            guest_address: spec.guest,
            ids: what.ids,
            intx_count: what.intx_count,
            msi_count: what.msi_count,
            msix_count: what.msix_count,
        };
        Ok((Assigned { function, refused: false }, host))
    }
}
