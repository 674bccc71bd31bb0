// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vhost-user backend of the virtio-irq device.
