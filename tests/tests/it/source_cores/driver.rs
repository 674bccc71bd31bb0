// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the driver makes of what the device returned, and what its clients are told.

use super::{Record, Reply, World};
use virtio_irq_driver::{Effect, Verdict};
use virtio_irq_proto::{Event, FunctionId, read_head};

impl World {
    pub(super) fn take_replies(&mut self) {
        while let Some(Reply { change, bytes, given }) = self.replies.pop_front() {
            let mut serials = given.into_iter();
            let mut effects = Vec::new();
            let result = self.table.replied(&change, &bytes, |effect| effects.push(effect));
            assert_eq!(result.is_err(), read_head(&bytes).is_err(), "the reply makes sense: {result:?}");
            for effect in effects {
                match effect {
                    Effect::Given(source) => {
                        self.clients.insert(source.id, serials.next().unwrap());
                    }
                    Effect::Gone(FunctionId(function)) => {
                        assert!(self.gone.contains(&function), "function {function} is there");
                        self.hear_gone(function);
                    }
                    Effect::Fired(id) => {
                        let instance = &mut self.all[self.clients[&id]];
                        assert!(instance.kept > 0, "{instance:?}");
                        instance.told = instance.told.max(instance.kept);
                    }
                }
            }
            let table = &self.table;
            self.clients.retain(|id, _| table.function_of(*id).is_some());
        }
    }

    pub(super) fn take_events(&mut self) {
        while let Some(records) = self.returned.pop_front() {
            for record in records {
                let mut verdict = self.table.event(record.event);
                if verdict == Verdict::AfterReplies {
                    self.take_replies();
                    verdict = self.table.event_after_replies(record.event);
                }
                self.tell(&record, verdict);
            }
        }
    }

    pub(super) fn tell(&mut self, record: &Record, verdict: Verdict) {
        match verdict {
            Verdict::Fired(id) => {
                let serial = self.clients[&id];
                let (about, fires) = record.about.unwrap();
                assert_eq!(serial, about, "an interrupt of {:?} is told to another client", self.all[about]);
                self.all[serial].told = self.all[serial].told.max(fires);
            }
            Verdict::Revoked(id) => {
                let (about, _) = record.about.unwrap();
                assert_eq!(self.clients[&id], about);
            }
            Verdict::Gone(function) => self.hear_gone(function.0),
            Verdict::Nothing => {
                // Kept for the client, unless the source is on its way out.
                if let (Event::Interrupt { source, .. }, Some((about, fires))) = (record.event, record.about)
                    && self.clients.get(&source) == Some(&about)
                {
                    self.all[about].kept = self.all[about].kept.max(fires);
                }
            }
            Verdict::Changed(..) => {}
            Verdict::AfterReplies => panic!("the replies were processed"),
        }
    }

    pub(super) fn hear_gone(&mut self, function: u16) {
        self.heard_gone.insert(function);
        let all = &self.all;
        self.clients.retain(|_, serial| all[*serial].function != function);
    }
}
