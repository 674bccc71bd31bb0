// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the parts together. None of them needs root, hardware, QEMU or a kernel module.

mod cores;
