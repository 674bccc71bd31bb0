// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the parts together. None of them needs root, hardware, QEMU or a kernel module.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test program: what fails here fails the test")]

mod conform;
mod cores;
mod coverage;
mod events;
mod hostile_frontend;
mod hostile_guest;
mod hostile_host;
mod interop;
mod lifecycle;
mod program;
mod reference;
mod source_bounds;
mod source_cores;
mod sources;
