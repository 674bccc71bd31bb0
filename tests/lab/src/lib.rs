// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab: emulated machines on which virtio-irq is shown to work.
