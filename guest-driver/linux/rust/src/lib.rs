// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver core of virtio-irq as the C part of `virtio_irq.ko` sees it.
//!
//! C owns everything that waits, locks or is shared with the device; `rust_core.h` is the interface. What the device
//! says only reaches this crate as a copy that the device cannot change any more.
#![cfg_attr(not(test), no_std)]

mod abi;
mod errno;
mod operation;
#[cfg(not(test))]
mod panic;

pub use abi::{RawDevice, RawEvent, RawMsg, RawTarget, Text};

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::slice;
use errno::Errno;
use operation::{Exchange, FindFailure};
use virtio_irq_driver::{Target, events};
use virtio_irq_proto::FunctionId;

#[cfg(not(test))]
unsafe extern "C" {
    fn virtio_irq_exchange(
        ctx: *mut c_void,
        request: *const u8,
        request_len: usize,
        reply_size: usize,
        reply: *mut *const u8,
    ) -> isize;
}

/// There is no kernel under the unit tests; they bring their own [`Exchange`].
#[cfg(test)]
unsafe fn virtio_irq_exchange(_: *mut c_void, _: *const u8, _: usize, _: usize, _: *mut *const u8) -> isize {
    -19
}

/// `struct virtio_irq_call` of C.
struct Call {
    ctx: *mut c_void,
}

impl Call {
    /// # Safety
    /// `ctx` points to a call that has begun and does not end while the result lives.
    unsafe fn new(ctx: *mut c_void) -> Self {
        Self { ctx }
    }
}

impl Exchange for Call {
    fn exchange(&mut self, request: &[u8], reply_size: usize) -> Result<&[u8], Errno> {
        let mut reply = core::ptr::null();
        // SAFETY: `ctx` is a call that has begun, by `Call::new`; `request` is readable for its length, and `reply`
        // writable, while the function runs.
        let returned = unsafe {
            virtio_irq_exchange(self.ctx, request.as_ptr(), request.len(), reply_size, &raw mut reply)
        };
        let len = usize::try_from(returned).map_err(|_| Errno::from_return(returned))?;
        // SAFETY: C returned a length and not an error, so `reply` points to as many initialized bytes that the
        // device cannot reach and C does not write before the next exchange of this call. That takes `&mut self`,
        // which the result borrows.
        Ok(unsafe { slice::from_raw_parts(reply, len) })
    }
}

fn returned(result: Result<(), Errno>) -> c_int {
    result.map_or_else(Errno::to_return, |()| 0)
}

/// Whether this driver can use the device.
///
/// # Safety
/// `device` is readable and `why` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_probe(device: *const RawDevice, why: *mut Text) -> c_int {
    // SAFETY: both are valid by the function's contract, and C structures of the same layout; nothing else uses `why`.
    let (device, why) = unsafe { (&*device, &mut *why) };
    match device.probe() {
        Ok(_) => 0,
        Err(error) => {
            why.set(&error);
            Errno::ENODEV.to_return()
        }
    }
}

/// The id of a function.
///
/// # Safety
/// `ctx` is a call that has begun, `target` is readable, `id` and `why` are writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_find(
    ctx: *mut c_void,
    target: *const RawTarget,
    id: *mut u16,
    why: *mut Text,
) -> c_int {
    // SAFETY: `ctx` is a call that has begun, and C ends it after this function.
    let mut call = unsafe { Call::new(ctx) };
    // SAFETY: all are valid by the function's contract, and different objects of C.
    let (target, id, why) = unsafe { (Target::from(&*target), &mut *id, &mut *why) };
    returned(match operation::find(&mut call, target) {
        Ok(function) => {
            *id = function.0;
            Ok(())
        }
        Err(FindFailure::Exchange(errno)) => Err(errno),
        Err(FindFailure::Find(error)) => {
            let errno = Errno::from(error);
            // That a device does not list a function is no news: most functions of a guest are not assigned.
            if errno != Errno::ENODEV {
                why.set(&error);
            }
            Err(errno)
        }
    })
}

/// The messages of a range of vectors.
///
/// # Safety
/// `ctx` is a call that has begun, `device` is readable, `msgs` is writable for `count` messages.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_fetch(
    device: *const RawDevice,
    ctx: *mut c_void,
    id: u16,
    irq_type: u32,
    first: u32,
    count: u32,
    msgs: *mut RawMsg,
) -> c_int {
    // SAFETY: `ctx` is a call that has begun, and C ends it after this function.
    let mut call = unsafe { Call::new(ctx) };
    // SAFETY: valid by the function's contract.
    let device = unsafe { &*device };
    let mut fetch = || {
        let device = device.probe().map_err(|_| Errno::EPROTO)?;
        let vectors = operation::vectors(irq_type, first, count)?;
        // SAFETY: `msgs` has room for `count` messages, which is the length of `vectors`; they need not be
        // initialized. C does not use them while this function runs.
        let msgs = unsafe { slice::from_raw_parts_mut(msgs.cast::<MaybeUninit<RawMsg>>(), vectors.len()) };
        let mut room = msgs.iter_mut();
        operation::fetch(&mut call, device, FunctionId(id), vectors, |message| {
            // The core gives as many messages as were asked for.
            if let Some(msg) = room.next() {
                msg.write(message.into());
            }
        })
    };
    returned(fetch())
}

/// The first message of a contiguous block, which begins with vector 0.
///
/// # Safety
/// `ctx` is a call that has begun, `device` is readable, `base` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_fetch_block(
    device: *const RawDevice,
    ctx: *mut c_void,
    id: u16,
    irq_type: u32,
    count: u32,
    base: *mut RawMsg,
) -> c_int {
    // SAFETY: `ctx` is a call that has begun, and C ends it after this function.
    let mut call = unsafe { Call::new(ctx) };
    // SAFETY: valid by the function's contract.
    let device = unsafe { &*device };
    let mut fetch = || {
        let device = device.probe().map_err(|_| Errno::EPROTO)?;
        let vectors = operation::vectors(irq_type, 0, count)?;
        let message = operation::fetch_block(&mut call, device, FunctionId(id), vectors)?;
        // SAFETY: writable by the function's contract.
        unsafe { base.write(message.into()) };
        Ok(())
    };
    returned(fetch())
}

/// Event number `index` of an event buffer; false if there are no more.
///
/// # Safety
/// `used` is readable for `len` bytes, which nobody writes, and `event` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_event(
    used: *const u8,
    len: usize,
    index: usize,
    event: *mut RawEvent,
) -> bool {
    // SAFETY: readable and constant by the function's contract.
    let used = unsafe { slice::from_raw_parts(used, len) };
    match events(used).filter_map(RawEvent::of).nth(index) {
        Some(found) => {
            // SAFETY: writable by the function's contract.
            unsafe { event.write(found) };
            true
        }
        None => false,
    }
}
