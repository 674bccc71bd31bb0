// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Userspace reference driver of virtio-irq.
