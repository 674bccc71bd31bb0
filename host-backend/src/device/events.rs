// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Events that wait for a buffer.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use virtio_irq_proto::{Event, FunctionId, VectorRange};

/// Pending events, oldest first. Bounded by the number of functions: news about something that is already pending
/// is merged into what is there.
#[derive(Debug, Default)]
pub(super) struct EventQueue(VecDeque<Event>);

impl EventQueue {
    /// The function is gone, and with it everything else there was to say about it.
    pub(super) fn function_gone(&mut self, function: FunctionId) {
        self.0
            .retain(|event| !matches!(event, Event::MessageChanged { function: of, .. } if *of == function));
        self.0.push_back(Event::FunctionGone { function });
    }

    /// Messages of these vectors moved. Ranges of one function and type grow together: a driver that fetches a
    /// message which did not move loses nothing.
    pub(super) fn message_changed(&mut self, function: FunctionId, vectors: VectorRange) {
        for event in &mut self.0 {
            if let Event::MessageChanged { function: of, vectors: pending } = event
                && *of == function
                && pending.irq_type == vectors.irq_type
            {
                *pending = hull(*pending, vectors);
                return;
            }
        }
        self.0.push_back(Event::MessageChanged { function, vectors });
    }

    pub(super) fn peek(&self) -> impl Iterator<Item = Event> + '_ {
        self.0.iter().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn take(&mut self, count: usize) {
        self.0.drain(..count.min(self.0.len()));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The smallest range that contains both, which are of one type.
fn hull(a: VectorRange, b: VectorRange) -> VectorRange {
    let first = a.first.min(b.first);
    let length = a.end().max(b.end()).saturating_sub(u32::from(first));
    let count = u16::try_from(length).ok().and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MAX);
    VectorRange { irq_type: a.irq_type, first, count }
}
