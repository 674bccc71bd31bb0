// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Userspace reference driver of virtio-irq.
//!
//! It plays VMM and guest at once: it connects to a device's vhost-user socket as QEMU would, and drives the queues as
//! a guest would, with virtio-drivers' virtqueue in a guest memory of its own. What a driver has to decide comes from
//! the same core that the Linux module is built around. Use it to try a device without a virtual machine, to test one,
//! and to see how a driver works.
//!
//! ```no_run
//! use std::num::NonZeroU16;
//! use virtio_irq_proto::{FunctionId, IrqType, VectorRange};
//! use virtio_irq_userspace::{Driver, Options};
//!
//! let mut driver = Driver::connect("/run/virtio-irq.sock".as_ref(), Options::default())?;
//! for function in driver.functions()? {
//!     println!("function {}: {} MSI vectors", function.id, function.msi_count);
//! }
//! let vectors = VectorRange { irq_type: IrqType::Msi, first: 0, count: NonZeroU16::MIN };
//! let messages = driver.messages(FunctionId(0), vectors)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod driver;
mod hal;
mod list;
mod memory;
mod queue;
mod session;
mod sources;
mod transport;
mod watchdog;

pub use driver::{Driver, DriverError, Options};
pub use memory::{GuestMemory, MemoryError, PAGE};
pub use queue::QueueError;
pub use session::SessionError;
pub use sources::Signal;
pub use virtio_irq_driver::{Block, FindError, NotHeld, Target, ranges};
