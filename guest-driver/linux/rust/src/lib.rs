// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver core of virtio-irq as the C part of `virtio_irq.ko` sees it.
//!
//! C owns everything that waits, locks or is shared with the device; `rust_core.h` is the interface. What the device
//! says only reaches this crate as a copy that the device cannot change any more.
#![cfg_attr(not(test), no_std)]
#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod abi;
pub mod delivery;
mod errno;
mod operation;
#[cfg(not(test))]
mod panic;
mod table;

pub use abi::{RawDevice, RawEvent, RawMsg, RawSource, RawTarget, RawWanted, Text};
pub use table::Table;

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::slice;
use errno::Errno;
use operation::{Exchange, FindFailure, Wanted};
use virtio_irq_driver::Target;
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

/// Whether this driver can use the device, and how many sources it can have.
///
/// # Safety
/// `device` is readable, `max_sources` and `why` are writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_probe(
    device: *const RawDevice,
    max_sources: *mut u32,
    why: *mut Text,
) -> c_int {
    // SAFETY: all are valid by the function's contract, and different objects of C.
    let (device, max_sources, why) = unsafe { (&*device, &mut *max_sources, &mut *why) };
    match device.probe() {
        Ok(found) => {
            *max_sources = if device.has_events() { found.max_sources() } else { 0 };
            0
        }
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

/// Sources of a function.
///
/// # Safety
/// `ctx` is a call that has begun, `device` and `wanted` are readable, `sources` is initialized and writable for
/// `wanted.most` sources, `count` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_allocate(
    device: *const RawDevice,
    ctx: *mut c_void,
    wanted: *const RawWanted,
    sources: *mut RawSource,
    count: *mut u32,
) -> c_int {
    // SAFETY: `ctx` is a call that has begun, and C ends it after this function.
    let mut call = unsafe { Call::new(ctx) };
    // SAFETY: valid by the function's contract, and different objects of C.
    let (device, wanted, count) = unsafe { (&*device, &*wanted, &mut *count) };
    let mut allocate = || {
        let device = device.probe().map_err(|_| Errno::EPROTO)?;
        let wanted = Wanted::new(wanted)?;
        // SAFETY: `sources` has room for as many sources as `wanted.most` says, which `Wanted::new` found to be no more
        // than 65535. They are initialized, and C does not use them while this function runs.
        let room = unsafe { slice::from_raw_parts_mut(sources, wanted.most()) };
        *count = operation::allocate(&mut call, device, wanted, room)?;
        Ok(())
    };
    returned(allocate())
}

/// What a late answer to an allocation gave.
///
/// # Safety
/// `device` is readable, `request` and `reply` are for their lengths and nobody writes them; `sources` is initialized and
/// writable for as many sources as a reply of `reply_len` bytes can have, `count` and `function` are writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_allocated(
    device: *const RawDevice,
    request: *const u8,
    request_len: usize,
    reply: *const u8,
    reply_len: usize,
    sources: *mut RawSource,
    count: *mut u32,
    function: *mut u16,
) -> c_int {
    // SAFETY: readable and constant by the function's contract.
    let (device, request, reply) = unsafe {
        (&*device, slice::from_raw_parts(request, request_len), slice::from_raw_parts(reply, reply_len))
    };
    let room = reply_len.checked_div(size_of::<RawSource>()).unwrap_or_default();
    // SAFETY: writable and initialized by the function's contract, for as many sources as that; different objects of C.
    let (sources, count, function) =
        unsafe { (slice::from_raw_parts_mut(sources, room), &mut *count, &mut *function) };
    let mut allocated = || {
        let device = device.probe().map_err(|_| Errno::EPROTO)?;
        *function = operation::function_of(request)?.0;
        *count = operation::allocated(device, request, reply, sources)?;
        Ok(())
    };
    returned(allocated())
}

/// Frees, masks or unmasks sources.
///
/// # Safety
/// `ctx` is a call that has begun.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_change(
    ctx: *mut c_void,
    change: u32,
    first: u32,
    count: u16,
) -> c_int {
    // SAFETY: `ctx` is a call that has begun, and C ends it after this function.
    let mut call = unsafe { Call::new(ctx) };
    returned(operation::change(&mut call, change, first, count))
}

/// Frees all sources of a function.
///
/// # Safety
/// `ctx` is a call that has begun.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_reset_function(ctx: *mut c_void, function: u16) -> c_int {
    // SAFETY: `ctx` is a call that has begun, and C ends it after this function.
    let mut call = unsafe { Call::new(ctx) };
    returned(operation::reset_function(&mut call, FunctionId(function)))
}
