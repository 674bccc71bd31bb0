// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that does no more than the rings ask of it, so that what is measured is the device.

use crate::floor;
use virtio_irq_proto::{EVENT_QUEUE, Event, F_EVENT, REQUEST_QUEUE};
use virtio_irq_tests::guest::{DATA, Desc, FEATURES, NEXT, REPLY};
use virtio_irq_tests::{Daemon, Guest};
use vmm_sys_util::epoll::Epoll;

/// Number of event buffers: as many as the queue has entries.
const BUFFERS: u16 = 16;
/// Size of each: 256 records.
const BUFFER_SIZE: u32 = 4096;
/// Where they lie: behind the longest reply that there is.
const BUFFERS_AT: u64 = REPLY + 0x10_0000;

/// See the module's description.
pub(crate) struct Plain {
    guest: Guest,
    calls: Epoll,
}

impl Plain {
    /// The guest of this daemon, with all event buffers provided.
    pub(crate) fn boot(daemon: &Daemon) -> Self {
        let mut guest =
            Guest::boot_with(daemon.socket(), FEATURES | 1 << F_EVENT).expect("the daemon serves a guest");
        for buffer in 0..BUFFERS {
            let at = BUFFERS_AT + u64::from(BUFFER_SIZE) * u64::from(buffer);
            guest.descriptor(EVENT_QUEUE, buffer, Desc::writable(at, BUFFER_SIZE));
            guest.publish(EVENT_QUEUE, buffer);
        }
        guest.kick(EVENT_QUEUE);
        let calls = floor::watch_for_edges(&[guest.call(REQUEST_QUEUE), guest.call(EVENT_QUEUE)]);
        Self { guest, calls }
    }

    /// Lays a request out that [`Plain::ask`] sends, any number of times.
    pub(crate) fn prepare(&mut self, request: &[u8], room: usize) {
        let room = u32::try_from(room).expect("a short reply");
        let length = u32::try_from(request.len()).expect("a short request");
        self.guest.lay_out(request, room);
        let request = Desc { flags: NEXT, next: 1, ..Desc::readable(DATA, length) };
        self.guest.descriptor(REQUEST_QUEUE, 0, request);
        self.guest.descriptor(REQUEST_QUEUE, 1, Desc::writable(REPLY, room));
    }

    /// Sends what was [prepared](Plain::prepare), waits for the reply, and says how long it is.
    pub(crate) fn ask(&mut self) -> usize {
        self.guest.publish(REQUEST_QUEUE, 0);
        self.guest.kick(REQUEST_QUEUE);
        loop {
            floor::sleep(&self.calls);
            if let Some((_, used)) = self.guest.poll_used(REQUEST_QUEUE) {
                return used as usize;
            }
        }
    }

    /// Waits until the device calls.
    pub(crate) fn sleep(&self) {
        floor::sleep(&self.calls);
    }

    /// Takes the events that are there, gives their buffers back, and says how many there were.
    pub(crate) fn take_events(&mut self) -> usize {
        let mut count = 0;
        while let Some((buffer, used)) = self.guest.poll_used(EVENT_QUEUE) {
            count += used as usize / Event::SIZE;
            self.guest.publish(EVENT_QUEUE, u16::try_from(buffer).expect("the head of a chain"));
        }
        if count > 0 && self.guest.wants_kick(EVENT_QUEUE) {
            self.guest.kick(EVENT_QUEUE);
        }
        count
    }

    /// Whether the last reply has status OK.
    pub(crate) fn is_ok(&self) -> bool {
        self.guest.ram.read(REPLY, 2) == [0, 0]
    }
}
