// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests and their replies, on time or late, and what the event buffers hold.

use super::{Driver, DriverError};
use crate::queue::{Buffers, SIZE, Used};
use crate::session::SessionError;
use std::time::Instant;
use virtio_drivers::transport::Transport;
use virtio_irq_driver::{Change, events, ranges};
use virtio_irq_proto::{EVENT_QUEUE, Event, REQUEST_QUEUE, Source, SourceRequest, wire};
use zerocopy::IntoBytes;

impl Driver {
    /// Sends a request, and has its reply take effect whenever it comes.
    pub(super) fn change(
        &mut self,
        change: Change,
        request: &[u8],
        room: usize,
        deadline: Instant,
    ) -> Result<Vec<Source>, DriverError> {
        self.clients.begin(&change)?;
        let token = self.give(request, room).inspect_err(|_| self.clients.give_up(&change))?;
        match self.wait_for(token, deadline) {
            Ok(reply) => Ok(self.clients.replied(&change, &reply)?),
            Err(error) => {
                self.late.insert(token, change);
                Err(error)
            }
        }
    }

    /// Comes to terms with what timed out, and processes the event buffers that must not be taken for those of sources
    /// that the next ALLOCATE gives (IRQ-DRV-38).
    pub(super) fn settle(&mut self, deadline: Instant) -> Result<(), DriverError> {
        loop {
            self.collect_replies()?;
            self.unwanted.sort_unstable();
            let unwanted: Vec<_> = ranges(self.unwanted.drain(..)).collect();
            for sources in unwanted {
                let request = SourceRequest::Free.to_wire(sources);
                self.change(
                    Change::Sources(SourceRequest::Free, sources),
                    request.as_bytes(),
                    size_of::<wire::ReplyHead>(),
                    deadline,
                )?;
            }
            if self.late.is_empty() && self.unwanted.is_empty() {
                break;
            }
            if !self.transport.session().wait(deadline)? {
                return Err(DriverError::Timeout(self.options.timeout));
            }
        }
        if self.clients.table().must_drain() {
            self.collect_events()?;
            self.clients.drained();
        }
        Ok(())
    }

    pub(super) fn send(
        &mut self,
        request: &[u8],
        room: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, DriverError> {
        let token = self.give(request, room)?;
        self.wait_for(token, deadline)
    }

    /// Makes a request available, and says by which token its reply comes.
    fn give(&mut self, request: &[u8], room: usize) -> Result<u16, DriverError> {
        let queues = self.queues.as_mut().ok_or(SessionError::Closed)?;
        let token = queues.requests.give(Buffers::new(request, room))?;
        self.transport.notify(REQUEST_QUEUE);
        self.transport.check()?;
        Ok(token)
    }

    fn wait_for(&mut self, token: u16, deadline: Instant) -> Result<Vec<u8>, DriverError> {
        loop {
            while let Some(used) = self.take_reply()? {
                if used.token == token {
                    return Ok(used.into_written());
                }
                self.late_reply(used);
            }
            if !self.transport.session().wait(deadline)? {
                return Err(DriverError::Timeout(self.options.timeout));
            }
        }
    }

    fn take_reply(&mut self) -> Result<Option<Used>, DriverError> {
        let queues = self.queues.as_mut().ok_or(SessionError::Closed)?;
        Ok(queues.requests.take()?)
    }

    /// The answer to a request that timed out. Nobody waits for it, and most of them change nothing.
    fn late_reply(&mut self, used: Used) {
        if let Some(change) = self.late.remove(&used.token) {
            let given = self.clients.replied(&change, &used.into_written());
            self.unwanted.extend(given.unwrap_or_default().iter().map(|source| source.id));
        }
    }

    fn collect_replies(&mut self) -> Result<(), DriverError> {
        while let Some(used) = self.take_reply()? {
            self.late_reply(used);
        }
        Ok(())
    }

    pub(super) fn collect_events(&mut self) -> Result<(), DriverError> {
        let mut returned = false;
        // As many as the device can hold: one that fills them as fast as they come must not keep this loop busy.
        for _ in 0..SIZE {
            let queues = self.queues.as_mut().ok_or(SessionError::Closed)?;
            let Some(used) = queues.events.take()? else { break };
            // The same buffer would come back the same way.
            if used.written().len() < Event::SIZE {
                return Err(DriverError::EmptyEvent);
            }
            for event in events(used.written()) {
                if !self.clients.event(event) {
                    self.collect_replies()?;
                    self.clients.event_after_replies(event);
                }
            }
            let queues = self.queues.as_mut().ok_or(SessionError::Closed)?;
            queues.events.give(used.buffers)?;
            returned = true;
        }
        if returned {
            self.transport.notify(EVENT_QUEUE);
            self.transport.check()?;
        }
        Ok(())
    }
}
