// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a command failed, and what to do about it.

use std::io;
use virtio_irq_proto::{FunctionId, Status};
use virtio_irq_userspace::DriverError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error("{0}; `list` shows the functions")]
    Which(&'static str),
    #[error("function {function}: {source}{}", remedy(.source))]
    Vectors { function: FunctionId, source: DriverError },
    #[error("--least is greater than --count")]
    Bounds,
    #[error("cannot write the result")]
    Output(#[from] io::Error),
}

impl RunError {
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// What to do about a refusal.
fn remedy(error: &DriverError) -> &'static str {
    if matches!(error, DriverError::Feature(_)) {
        return "; vhost-device-irq allocates sources of functions that it is given with vfio=, or that are simulated";
    }
    match error.status() {
        Some(Status::Busy) => {
            "; disable MSI and MSI-X in its capabilities first, or --wait until somebody does"
        }
        Some(Status::NotReady) => {
            "; --wait until the VMM opens the function, and check vfio= of vhost-device-irq"
        }
        Some(Status::NoSpace) => "; ask for a smaller --least, or raise --max-sources of vhost-device-irq",
        Some(Status::NotContiguous) => "; ask without --contiguous, or for vectors of MSI",
        Some(Status::Unsupported) => "; `list` shows what the device can do with each function",
        Some(Status::NotEnabled) => "; its driver has to enable MSI or MSI-X first",
        Some(Status::NoVector) => "; `list` shows how many it has",
        Some(Status::NotIsolated) => "; vhost-device-irq --allow-unsafe-interrupts would permit it",
        Some(Status::HostError) => "; the log of vhost-device-irq says why",
        _ => "",
    }
}
