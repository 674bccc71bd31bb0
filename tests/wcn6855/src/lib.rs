// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A model of Qualcomm's WCN6855 Wi-Fi card (QCNFA765), served to QEMU as a vfio-user device.
//!
//! It is no Wi-Fi card. It is what virtio-irq is about: a PCI function with 32 MSI vectors whose rings hold messages in
//! registers that no hypervisor traps. A ring that is told to fire writes its message by DMA, so the emulated machine's
//! IOMMU judges it as it would judge the card. Besides that there is what ath11k needs to find a card, load its firmware
//! and reach mission mode.
//!
//! - [`wire`]: the messages of vfio-user, without I/O
//! - [`Device`]: the card, without I/O: accesses in, DMA out
//! - [`Session`]: one client's conversation with the card, without I/O: messages in, messages out
//! - [`serve`]: the socket
//!
//! README.md beside this crate lists the registers, and which of them are guesses.

#![forbid(unsafe_code)]
#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::cast_possible_truncation
)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        reason = "tests calculate with numbers of their own"
    )
)]

pub mod cli;
mod config;
mod device;
mod memory;
mod mhi;
mod nonsense;
pub mod ring;
mod session;
mod socket;
pub mod wire;

pub use device::{Device, Dma, Outside, Purpose, Region, test_page};
pub use session::{Output, Session, Violation};
pub use socket::{ServeError, serve, serve_client};
