// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Driver core of virtio-irq: a state machine without I/O.
