// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab: emulated machines on which virtio-irq is shown to work.
//!
//! A [`scenario`](scenarios) boots an emulated machine with an IOMMU, the *host*, whose Linux runs vfio-pci, KVM, the
//! daemon and QEMU, and in that one or more *guests*. Both are Debian's stock kernel. Process 1 of each is the same small
//! agent, which does what the scenario says and decides nothing.
//!
//! Everything is kept under `target/lab`. No process outlives the runner, and nothing stays mounted.

#![forbid(unsafe_code)]

mod agent;
mod artifacts;
pub mod checks;
mod companion;
mod container;
mod dkms;
mod error;
mod hardware;
mod host;
mod initramfs;
mod iommu;
mod layout;
mod machine;
mod modules;
mod monitor;
pub mod msi;
pub mod package;
mod process;
mod program;
mod progress;
mod provision;
pub mod scenarios;
mod wifi;

pub use agent::{Agent, Start};
pub use artifacts::{Artifacts, build};
pub use companion::Companion;
pub use container::Container;
pub use dkms::module_source;
pub use error::{Error, Result};
pub use hardware::{Requested, interrupts};
pub use host::{Host, RunningGuest, payload};
pub use iommu::Iommu;
pub use layout::Layout;
pub use machine::{Guest, Machine};
pub use process::{Holdings, Process};
pub use progress::Stage;
pub use provision::provision;
