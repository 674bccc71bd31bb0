// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The wire format of the virtio-irq device.
//!
//! virtio-irq tells a guest the MSI messages that the host really programmed for the functions assigned to it.
//! This crate is the one place where the bytes are defined in code: device, driver, kernel module and tests use it.
//! The authority is the text in `spec/virtio-irq.md`; where the two differ, this crate is wrong.
//!
//! There are two layers. [`wire`] holds the structures exactly as they lie in memory. The other modules hold what a
//! program works with: types that can only carry values that the specification allows, with one function each way.
//! Nothing here allocates, blocks, panics on input or uses `unsafe`.
#![no_std]
#![forbid(unsafe_code)]
#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod config;
mod event;
mod function;
mod reply;
mod request;
mod source;
mod vector;
pub mod wire;

pub use config::{Config, ConfigError};
pub use event::Event;
pub use function::{Function, FunctionFlags, FunctionId, NoPciAddress, PciAddress, PciIds};
pub use reply::{FunctionList, MessageList, ReplyError, SourceList, Status, read_done, read_head};
pub use request::{Allocate, GetMessages, ListFunctions, Request, ResetFunction, SourceRequest};
pub use source::{Delivery, Layout, Source, SourceId, SourceRange};
pub use vector::{IrqType, Message, VectorRange};

/// Virtio device id. Experimental: the virtio specification has no id for this device, and 37 is unassigned there.
///
/// A driver recognizes the device by [`MAGIC`] in the configuration space, never by this id alone (IRQ-DRV-01).
pub const DEVICE_ID: u32 = 37;

/// First field of the configuration space: the bytes `V`, `I`, `R`, `Q`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"VIRQ");

/// Version of the protocol that this crate speaks. It changes only when old drivers would misread the device;
/// additions come as feature bits.
pub const VERSION: u16 = 1;

/// Index of the request queue.
pub const REQUEST_QUEUE: u16 = 0;

/// Index of the event queue.
pub const EVENT_QUEUE: u16 = 1;

/// Number of virtqueues.
pub const QUEUE_COUNT: u16 = 2;

/// Feature bit: the device tells the messages of vectors that the VMM delivers (GET_MESSAGES).
pub const F_NATIVE: u32 = 0;

/// Feature bit: the device allocates sources and delivers them through the event queue.
pub const F_EVENT: u32 = 1;
