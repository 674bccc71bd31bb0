// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What happened, counted all the time.
//!
//! Each count is an atomic that nobody waits for: whoever reads several of them may see one of an earlier moment than
//! another.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use virtio_irq_proto::wire::{self, ReplyHead, RequestHead, event_type, request_type};
use zerocopy::FromBytes;

/// Requests by type: the name, the type on the wire. The last one stands for every other type.
pub const REQUESTS: [(&str, u16); 8] = [
    ("list-functions", request_type::LIST_FUNCTIONS),
    ("get-messages", request_type::GET_MESSAGES),
    ("allocate", request_type::ALLOCATE),
    ("free", request_type::FREE),
    ("mask", request_type::MASK),
    ("unmask", request_type::UNMASK),
    ("reset-function", request_type::RESET_FUNCTION),
    ("unknown", 0),
];

/// Replies by status, which is the index. The last one is a chain without room for any.
pub const REPLIES: [&str; 16] = [
    "ok",
    "unsupported",
    "invalid",
    "buffer-too-small",
    "no-function",
    "no-vector",
    "not-enabled",
    "not-isolated",
    "host-error",
    "function-gone",
    "no-source",
    "busy",
    "no-space",
    "not-contiguous",
    "not-ready",
    "untouched",
];

/// Events by type: the name, the type on the wire.
pub const EVENTS: [(&str, u16); 4] = [
    ("interrupt", event_type::INTERRUPT),
    ("message-changed", event_type::MESSAGE_CHANGED),
    ("source-revoked", event_type::SOURCE_REVOKED),
    ("function-gone", event_type::FUNCTION_GONE),
];

/// How far a frontend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Frontend {
    /// There is none.
    None,
    /// It is connected; its guest has no driver that uses the device.
    Connected,
    /// A driver uses the device.
    Running,
    /// The driver stopped, or the virtual machine is paused.
    Stopped,
}

impl Frontend {
    /// As it is told to people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Connected => "connected",
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

/// The counts of one device.
#[derive(Debug, Default)]
pub struct Counters {
    requests: [AtomicU64; REQUESTS.len()],
    replies: [AtomicU64; REPLIES.len()],
    events: [AtomicU64; EVENTS.len()],
    host_failures: AtomicU64,
    frontends: AtomicU64,
    frontend: AtomicU8,
}

/// [`Counters`] at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// In the order of [`REQUESTS`].
    pub requests: [u64; REQUESTS.len()],
    /// In the order of [`REPLIES`].
    pub replies: [u64; REPLIES.len()],
    /// Events in buffers of the driver, in the order of [`EVENTS`].
    pub events: [u64; EVENTS.len()],
    /// Calls to the host that failed for another reason than what a driver can do about.
    pub host_failures: u64,
    /// Frontends that connected.
    pub frontends: u64,
    /// How far the present one is.
    pub frontend: Frontend,
}

fn add_one(count: Option<&AtomicU64>) {
    if let Some(count) = count {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn load<const N: usize>(counts: &[AtomicU64; N]) -> [u64; N] {
    std::array::from_fn(|index| counts.get(index).map_or(0, |count| count.load(Ordering::Relaxed)))
}

impl Counters {
    pub(crate) fn answered(&self, request: &[u8], reply: &[u8]) {
        let kind = RequestHead::read_from_prefix(request).map_or(0, |(head, _)| head.kind.get());
        let known = REQUESTS.iter().position(|(_, number)| *number == kind);
        add_one(self.requests.get(known.unwrap_or(REQUESTS.len() - 1)));
        let untouched = REPLIES.len() - 1;
        let status = ReplyHead::read_from_prefix(reply)
            .map_or(untouched, |(head, _)| usize::from(head.status.get()).min(untouched));
        add_one(self.replies.get(status));
    }

    pub(crate) fn told(&self, events: &[wire::Event]) {
        for event in events {
            let index = EVENTS.iter().position(|(_, number)| *number == event.kind.get());
            add_one(index.and_then(|index| self.events.get(index)));
        }
    }

    pub(crate) fn host_failed(&self) {
        add_one(Some(&self.host_failures));
    }

    pub(crate) fn frontend_came(&self) {
        add_one(Some(&self.frontends));
        // Its driver can be running already.
        let (none, connected) = (Frontend::None as u8, Frontend::Connected as u8);
        let _ = self.frontend.compare_exchange(none, connected, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(crate) fn frontend_is(&self, state: Frontend) {
        self.frontend.store(state as u8, Ordering::Relaxed);
    }

    /// How far the present frontend is.
    pub fn frontend(&self) -> Frontend {
        let state = self.frontend.load(Ordering::Relaxed);
        [Frontend::Connected, Frontend::Running, Frontend::Stopped]
            .into_iter()
            .find(|one| *one as u8 == state)
            .unwrap_or(Frontend::None)
    }

    /// All of them.
    pub fn read(&self) -> Counts {
        Counts {
            requests: load(&self.requests),
            replies: load(&self.replies),
            events: load(&self.events),
            host_failures: self.host_failures.load(Ordering::Relaxed),
            frontends: self.frontends.load(Ordering::Relaxed),
            frontend: self.frontend(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_irq_proto::{Event, FunctionId, SourceId, Status};
    use zerocopy::IntoBytes;

    #[test]
    fn requests_count_by_type_and_replies_by_status() {
        let counters = Counters::default();
        counters.answered(&[2, 0, 0, 0, 0, 0, 0, 0], Status::NotReady.to_head().as_bytes());
        counters.answered(&[20, 0, 0, 0, 0, 0, 0, 0], Status::Ok.to_head().as_bytes());
        counters.answered(&[20, 1, 0, 0, 0, 0, 0, 0], Status::Unsupported.to_head().as_bytes());
        counters.answered(&[1], &[]);
        let counts = counters.read();
        assert_eq!(counts.requests, [0, 1, 0, 0, 0, 0, 1, 2]);
        assert_eq!(counts.replies, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn every_status_has_a_name() {
        for (status, index, name) in [
            (Status::Invalid, 2, "invalid"),
            (Status::HostError, 8, "host-error"),
            (Status::NoSource, 10, "no-source"),
            (Status::NotReady, 14, "not-ready"),
        ] {
            assert_eq!(status.to_head().status.get(), index);
            assert_eq!(REPLIES[usize::from(index)], name);
        }
    }

    #[test]
    fn events_count_by_type() {
        let counters = Counters::default();
        let function = FunctionId(3);
        let interrupt = Event::Interrupt { function, source: SourceId(5) }.to_wire();
        counters.told(&[interrupt, Event::FunctionGone { function }.to_wire(), interrupt]);
        assert_eq!(counters.read().events, [2, 0, 0, 1]);
    }
}
