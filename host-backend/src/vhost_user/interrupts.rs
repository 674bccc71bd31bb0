// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread that events take.
//!
//! It waits for the eventfds of the sources itself. The library's worker could wait for them as well, but only by way of an
//! epoll instance in its own; and it would find them after whatever the host takes its time for on behalf of a request.
//! It is the only one that takes signals and that fills event buffers. What else there is to tell, the worker rings for.

use super::chain::{Broken, Buffers, Chain};
use super::ring::{Memory, Ring};
use super::{Look, Progress, Session};
use crate::counters::Counters;
use crate::device::Device;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use vhost_user_backend::VringState;
use virtio_irq_proto::Event;
use vm_memory::GuestMemoryMmap;
use zerocopy::IntoBytes;

impl Session {
    /// Starts the thread.
    pub(super) fn start_interrupts(session: &Arc<Self>) -> io::Result<()> {
        let name = "interrupts".to_owned();
        let deliverer = Arc::clone(session);
        let thread = thread::Builder::new().name(name).spawn(move || deliverer.deliver_interrupts())?;
        *session.interrupts.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Ends the thread, and waits for it: no event buffer is touched any more.
    pub(super) fn end_interrupts(&self) {
        let thread = self.interrupts.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.ending.store(true, Ordering::Release);
        self.bridge.deliveries().ring();
        // It does not panic, and nobody would be there to hear of it.
        drop(thread.map(thread::JoinHandle::join));
    }

    /// Has the thread tell the driver what there is to tell.
    ///
    /// A ring without a buffer for it needs no look before the driver says that there are some: it `has_buffers` now, and
    /// keeps them if there is nothing to tell.
    pub(super) fn tell_events(&self, has_buffers: bool) {
        if has_buffers {
            self.starving.store(false, Ordering::Release);
        }
        if !self.starving.load(Ordering::Acquire) && self.bridge.device().has_events() {
            self.bridge.deliveries().ring();
        }
    }

    fn deliver_interrupts(&self) {
        let mut progress = Progress::Done;
        // Asked after every look at the signals, of which each can have taken the bell's.
        while !self.ending.load(Ordering::Acquire) {
            let has_events = match progress {
                Progress::Done => self.bridge.wait(),
                Progress::More => {
                    self.bridge.collect();
                    self.bridge.device().has_events()
                }
            };
            // There is no source before the first request, with which the rings come; but signals of an earlier frontend's
            // can come as long as somebody else has their eventfds open.
            progress = match self.rings.get() {
                Some([_, events]) if has_events => self.deliver_events(events),
                _ => Progress::Done,
            };
        }
    }

    /// Tells the guest what there is to tell.
    fn deliver_events(&self, ring: &Ring) -> Progress {
        let progress = self.work_off(ring, |state, memory| self.deliver_buffer(state, memory));
        progress.unwrap_or_else(|| {
            self.bridge.device().events_wait();
            Progress::Done
        })
    }

    fn deliver_buffer(
        &self,
        state: &mut VringState<Memory>,
        memory: &GuestMemoryMmap,
    ) -> Result<Look, Broken> {
        let mut device = self.bridge.device();
        while device.has_events() && device.look_first() {
            drop(device);
            self.bridge.collect();
            device = self.bridge.device();
        }
        if !device.has_events() {
            // There may be a buffer by now, which nobody was notified of.
            self.starving.store(false, Ordering::Release);
            return Ok(Look::Enough);
        }
        if self.is_stopped() {
            device.events_wait();
            return Ok(Look::Enough);
        }
        let Some(chain) = Chain::next(state, memory)? else {
            device.events_wait();
            self.starving.store(true, Ordering::Release);
            return Ok(Look::Empty);
        };
        self.starving.store(false, Ordering::Release);
        let counters = self.bridge.counters();
        let used =
            chain.buffers().and_then(|buffers| tell(&mut device, counters, buffers, memory)).unwrap_or(0);
        chain.complete(state, memory, used)?;
        Ok(if device.has_events() { Look::Completed } else { Look::CompletedTheLast })
    }
}

/// Writes as many events as fit; `None` where the buffer is not one for events.
fn tell(
    device: &mut Device,
    counters: &Counters,
    buffers: &Buffers,
    memory: &GuestMemoryMmap,
) -> Option<u32> {
    if buffers.is_readable() {
        return None;
    }
    let events = device.next_events(buffers.writable_length() / Event::SIZE);
    let used = buffers.write(memory, events.as_bytes())?;
    device.events_taken(events.len());
    counters.told(&events);
    Some(used)
}
