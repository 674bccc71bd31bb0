// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver side of virtio-irq without any I/O.
//!
//! Everything a driver has to decide is here: whether a device is one it can use, which of the device's functions is
//! the one it looks for, how a fetch of messages is cut into requests, what a reply means, whether messages form a block,
//! which sources it holds and what an event means to it. Everything that waits, allocates or touches memory shared with
//! the device is the caller's: the Linux module and the userspace reference driver each wrap this crate.
//!
//! An operation is a value. Ask it for its next request, send that, hand it the bytes that the device says it wrote,
//! and repeat while it answers [`Progress::Again`]:
//!
//! ```text
//! let mut find = Find::new(target);
//! loop {
//!     let used = transport(find.request().to_wire(), find.request().reply_size())?;
//!     if let Progress::Done(function) = find.reply(used)? { break function }
//! }
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod allocation;
mod change;
mod device;
mod events;
mod fetch;
mod find;
mod sources;

pub use allocation::Allocation;
pub use change::{Change, Effect};
pub use device::{Device, ProbeError};
pub use events::events;
pub use fetch::{Block, Fetch, NotContiguous};
pub use find::{Find, FindError, LIST_PAGE, Target};
pub use sources::{NotHeld, Slot, Sources, Verdict, ranges};

/// What an operation needs after a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<T> {
    /// Send its next request.
    Again,
    /// Nothing: this is the result.
    Done(T),
}
