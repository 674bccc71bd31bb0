// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Does a device do what the specification of virtio-irq says?
//!
//! [`check`] connects to any vhost-user backend that serves the device, as a frontend with a guest of its own whose
//! rings it lays out byte by byte, tries each device requirement that can be seen from there, and says of each id
//! whether it is [held](Verdict::Held), [broken](Verdict::Broken) with the bytes that show it, or
//! [not observable](Verdict::NotObservable) and why.
//!
//! Much of what a device has to do follows what happens on its host: interrupts, a message that moves, a function that
//! leaves. Whoever runs the device can make these happen; the checker asks for them through [`Provoke`].

mod checks;
#[allow(
    clippy::expect_used,
    reason = "without memory and eventfds there is no guest, and addresses are our own"
)]
pub mod guest;
pub mod link;
mod provoke;
mod report;
mod requirements;
mod session;

pub use checks::{check, checked_ids};
pub use guest::Guest;
pub use link::Link;
pub use provoke::{Action, Command, Nothing, Provoke, ProvokeError};
pub use report::{Finding, Report, Seen, Verdict};
pub use requirements::{Requirement, device_requirements};

use std::time::Duration;

/// Longest time that any step of a test waits. Nothing comes near it unless something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(20);
