// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket of a real daemon: what it tells, what it does, and what it does not let clients do to it.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test program: what fails here fails the test")]

mod bad_input;
mod client;
mod command;
#[path = "../common/mod.rs"]
mod common;
mod log;
mod operator;
mod qmp;
mod socket;
mod status;
