// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The table of sources as C calls it: under its `event_lock`, in any context.

use crate::abi::{RawDevice, RawEvent};
use crate::errno::Errno;
use crate::returned;
use crate::table::{Clients, Table};
use core::ffi::{c_int, c_void};
use core::slice;
use virtio_irq_driver::Slot;
use virtio_irq_proto::{FunctionId, SourceId};

#[cfg(not(test))]
unsafe extern "C" {
    fn virtio_irq_source_fired(ctx: *mut c_void, source: u32);
    fn virtio_irq_function_ended(ctx: *mut c_void, function: u16);
}

/// There is no kernel under the unit tests; they bring their own [`Clients`].
#[cfg(test)]
unsafe fn virtio_irq_source_fired(_: *mut c_void, _: u32) {}
#[cfg(test)]
unsafe fn virtio_irq_function_ended(_: *mut c_void, _: u16) {}

/// `struct virtio_irq` of C, whose `event_lock` is held.
struct Kernel {
    ctx: *mut c_void,
}

impl Clients for Kernel {
    fn fired(&mut self, source: SourceId) {
        // SAFETY: `ctx` is the device whose lock C holds while it calls a function of this module.
        unsafe { virtio_irq_source_fired(self.ctx, source.0) }
    }

    fn ended(&mut self, function: FunctionId) {
        // SAFETY: as in `fired`.
        unsafe { virtio_irq_function_ended(self.ctx, function.0) }
    }
}

/// Makes a table without sources.
///
/// # Safety
/// `table` is writable. `slots` is writable for `count` times `RS_SIZE_SLOT` bytes, or `count` is 0; both are aligned as a
/// `u64`, and until C frees them nobody but this module touches what they point to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_table_init(table: *mut Table, slots: *mut c_void, count: u32) {
    let slots: *mut Slot = slots.cast();
    let count = if slots.is_null() { 0 } else { usize::try_from(count).unwrap_or_default() };
    for index in 0..count {
        // SAFETY: `slots` is writable for `count` slots, whose size is at most `RS_SIZE_SLOT`.
        unsafe { slots.add(index).write(Slot::default()) };
    }
    let slots = if count == 0 {
        &mut []
    } else {
        // SAFETY: `count` slots were initialized above, and are this module's until the table is gone.
        unsafe { slice::from_raw_parts_mut(slots, count) }
    };
    // SAFETY: writable and aligned by the function's contract.
    unsafe { table.write(Table::new(slots)) };
}

/// Forgets all sources: the device was reset.
///
/// # Safety
/// `table` was made by [`virtio_irq_rs_table_init`], and its lock is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_table_reset(table: *mut Table) {
    // SAFETY: initialized, and nobody else uses it, by the function's contract.
    unsafe { &mut *table }.reset();
}

/// Takes a reply.
///
/// # Safety
/// `table` was made by [`virtio_irq_rs_table_init`], and its lock, which is that of `ctx`, is held. `device` is readable,
/// `request` and `reply` are for their lengths, and nobody writes them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_replied(
    table: *mut Table,
    device: *const RawDevice,
    ctx: *mut c_void,
    request: *const u8,
    request_len: usize,
    reply: *const u8,
    reply_len: usize,
) -> c_int {
    // SAFETY: initialized, and nobody else uses it, by the function's contract.
    let table = unsafe { &mut *table };
    // SAFETY: readable and constant by the function's contract.
    let (device, request, reply) = unsafe {
        (&*device, slice::from_raw_parts(request, request_len), slice::from_raw_parts(reply, reply_len))
    };
    let device = device.probe().map_err(|_| Errno::EPROTO);
    returned(device.and_then(|device| table.replied(device, request, reply, &mut Kernel { ctx })))
}

/// Event number `index` of an event buffer, and what it means; false if there are no more.
///
/// # Safety
/// `table` was made by [`virtio_irq_rs_table_init`], and its lock is held. `used` is readable for `len` bytes, which nobody
/// writes, and `event` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_event(
    table: *mut Table,
    used: *const u8,
    len: usize,
    index: usize,
    after_replies: bool,
    event: *mut RawEvent,
) -> bool {
    // SAFETY: initialized, and nobody else uses it, by the function's contract.
    let table = unsafe { &mut *table };
    // SAFETY: readable and constant by the function's contract.
    let used = unsafe { slice::from_raw_parts(used, len) };
    match table.event(used, index, after_replies) {
        Some(found) => {
            // SAFETY: writable by the function's contract.
            unsafe { event.write(found) };
            true
        }
        None => false,
    }
}

/// Whether event buffers have to be looked through before the next allocation.
///
/// # Safety
/// `table` was made by [`virtio_irq_rs_table_init`], and its lock is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_must_drain(table: *const Table) -> bool {
    // SAFETY: initialized, and nobody else uses it, by the function's contract.
    unsafe { &*table }.must_drain()
}

/// All event buffers that the device has returned were looked through.
///
/// # Safety
/// `table` was made by [`virtio_irq_rs_table_init`], and its lock is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_drained(table: *mut Table) {
    // SAFETY: initialized, and nobody else uses it, by the function's contract.
    unsafe { &mut *table }.drained();
}

/// A request to free the source is about to be sent.
///
/// # Safety
/// `table` was made by [`virtio_irq_rs_table_init`], and its lock is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_leave(table: *mut Table, source: u32) -> c_int {
    // SAFETY: initialized, and nobody else uses it, by the function's contract.
    returned(unsafe { &mut *table }.leave(source))
}

/// Whether a source is still what the function was given.
///
/// # Safety
/// `table` was made by [`virtio_irq_rs_table_init`], and its lock is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_check(table: *const Table, source: u32, function: u16) -> c_int {
    // SAFETY: initialized, and nobody else uses it, by the function's contract.
    returned(unsafe { &*table }.check(source, function))
}

/// From now on the client of a source that was given is there.
///
/// # Safety
/// `table` was made by [`virtio_irq_rs_table_init`], and its lock, which is that of `ctx`, is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_listen(table: *mut Table, ctx: *mut c_void, source: u32) {
    // SAFETY: initialized, and nobody else uses it, by the function's contract.
    unsafe { &mut *table }.listen(source, &mut Kernel { ctx });
}

/// Whether the device masks the source.
///
/// # Safety
/// `table` was made by [`virtio_irq_rs_table_init`], and its lock is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn virtio_irq_rs_is_masked(table: *const Table, source: u32) -> bool {
    // SAFETY: initialized, and nobody else uses it, by the function's contract.
    unsafe { &*table }.is_masked(source)
}
