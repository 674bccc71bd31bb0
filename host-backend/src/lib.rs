// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vhost-user backend of the virtio-irq device.
//!
//! [`device`] decides what the device answers, without any I/O. [`host`] knows the functions of the platform, and
//! [`vfio`] their interrupts on a device that the VMM has open. [`bridge`] joins the two, [`deliveries`] watches for
//! interrupts, [`vhost_user`] puts them behind virtqueues, and [`serve`] brings the frontends. [`admission`] opens the
//! functions that the operator names, on the command line, by [`control`], or by what QEMU says ([`vmm`]). [`cli`] is the
//! program around it all, confined by [`sandbox`] and with the few privileged steps made by its [`opener`]. [`doctor`] says
//! what keeps it from working.

pub mod admission;
pub mod bridge;
pub mod cli;
pub mod control;
pub mod counters;
pub mod deliveries;
pub mod device;
pub mod doctor;
pub mod host;
pub mod log;
pub mod lookout;
pub mod opener;
mod printable;
pub mod qmp;
mod rate;
pub mod sandbox;
pub mod serve;
mod sys;
pub mod vfio;
pub mod vhost_user;
pub mod vmm;
