// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Empty: rustc wants a crate of this name, and what it would bring, such as `memcpy`, the kernel has.
#![no_std]
#![no_builtins]
#![feature(compiler_builtins)]
#![compiler_builtins]
#![allow(internal_features, reason = "this crate stands in for an internal one")]
