// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tools of the integration tests and benchmarks: the daemon as a process of its own, the device in this process, and the
//! conformance checker's frontend and guest, which do exactly what they are told to, right or wrong.
#![allow(clippy::expect_used, reason = "tools of tests and benchmarks: where they fail there is no going on")]

pub mod daemon;
pub mod program;
pub mod served;
pub mod triggers;
pub mod vitals;

pub use daemon::Daemon;
pub use served::Served;
pub use triggers::Triggers;
pub use virtio_irq_conform::{Guest, Link, PATIENCE, guest, link};
