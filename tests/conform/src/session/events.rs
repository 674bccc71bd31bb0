// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Events, as they come.

use super::{Candidate, Outcome, QUEUE_SIZE, Session, broken, seen_records, unseen};
use crate::guest::{Desc, POISON, REPLY};
use virtio_irq_proto::{EVENT_QUEUE, Source, SourceId, wire};
use zerocopy::FromBytes;

/// Length of an ordinary event buffer.
const EVENT_BUFFER: u32 = 64;
/// Distance of event buffers in memory.
const EVENT_STRIDE: u64 = 256;

/// Where event buffer `head` lies: above anything that a reply needs.
pub(crate) fn buffer(head: u16) -> u64 {
    REPLY + 0x8_0000 + EVENT_STRIDE * u64::from(head)
}

/// A source that is raised to see what else there is to deliver: a device tells in the order in which sources fired.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Witness {
    function: Candidate,
    source: Source,
}

impl Session<'_> {
    /// Makes event buffers of 64 bytes available: four records each.
    pub(crate) fn listen(&mut self) {
        for head in 0..QUEUE_SIZE / 2 {
            self.offer(head, EVENT_BUFFER);
        }
    }

    /// Makes event buffer `head` available, with this length.
    pub(crate) fn offer(&mut self, head: u16, length: u32) {
        let at = buffer(head);
        self.guest.ram.write(at, &[POISON; EVENT_STRIDE as usize]);
        self.guest.descriptor(EVENT_QUEUE, head, Desc::writable(at, length));
        self.guest.publish(EVENT_QUEUE, head);
        self.guest.kick(EVENT_QUEUE);
    }

    /// The next event buffer that comes back: its head, used length, and the bytes in its place.
    pub(crate) fn event_buffer(&mut self) -> Option<(u16, u32, Vec<u8>)> {
        let (head, used) = self.guest.used_within(EVENT_QUEUE, self.bench.patience)?;
        let head = u16::try_from(head).unwrap_or(u16::MAX);
        let known = head < QUEUE_SIZE;
        let bytes = if known { self.guest.ram.read(buffer(head), EVENT_STRIDE as usize) } else { Vec::new() };
        Some((head, used, bytes))
    }

    /// The next record, whatever it is; `None` if none comes. Needs [`Session::listen`] before.
    pub(crate) fn record(&mut self) -> Outcome<Option<wire::Event>> {
        while self.records.is_empty() {
            let Some((head, used, bytes)) = self.event_buffer() else { return Ok(None) };
            let written = usize::try_from(used).ok().filter(|used| *used <= EVENT_BUFFER as usize);
            let records = written.and_then(|used| <[wire::Event]>::ref_from_bytes(bytes.get(..used)?).ok());
            let Some(records) = records else {
                return unseen(format!("needs events, and buffer {head} came back with used length {used}"));
            };
            self.records.extend(records);
            self.offer(head, EVENT_BUFFER);
        }
        Ok(self.records.pop_front())
    }

    /// Records up to and with the INTERRUPT of this source, which the check knows to come.
    pub(crate) fn until(&mut self, source: SourceId) -> Outcome<Vec<wire::Event>> {
        let mut records = Vec::new();
        loop {
            let Some(record) = self.record()? else {
                return unseen(format!("needs an INTERRUPT of source {source}, and none came"));
            };
            records.push(record);
            if is_interrupt(&record, source) {
                return Ok(records);
            }
        }
    }

    /// The source of this vector as a witness.
    pub(crate) fn witness(&mut self, function: &Candidate, vector: u16) -> Outcome<Witness> {
        Ok(Witness { function: *function, source: self.hold(function, vector)? })
    }

    /// What comes of what was done before: raises the witness, and returns the records up to its INTERRUPT, without it.
    pub(crate) fn witnessed(&mut self, witness: &Witness) -> Outcome<Vec<wire::Event>> {
        self.raise(&witness.function, witness.source.vector)?;
        let mut records = self.until(witness.source.id)?;
        records.pop();
        Ok(records)
    }

    /// The next record is the INTERRUPT of this source; `missing` says what it means if none comes.
    pub(crate) fn interrupts_next(&mut self, source: SourceId, missing: &str) -> Outcome {
        match self.record()? {
            Some(record) if is_interrupt(&record, source) => Ok(()),
            Some(record) => broken("another event than the pending one came", seen_records(&[record])),
            None => broken(missing, Vec::new()),
        }
    }

    /// What was done before makes this source deliver; `why` says what it means if it does not.
    pub(crate) fn delivers(&mut self, source: SourceId, witness: &Witness, why: &str) -> Outcome {
        let records = self.witnessed(witness)?;
        if records.iter().any(|record| is_interrupt(record, source)) {
            return Ok(());
        }
        broken(why, seen_records(&records))
    }

    /// Nothing that was done before makes this source deliver; `why` says what it means if it does.
    pub(crate) fn stays_silent(&mut self, source: SourceId, witness: &Witness, why: &str) -> Outcome {
        let records = self.witnessed(witness)?;
        if records.iter().any(|record| is_interrupt(record, source)) {
            return broken(why, seen_records(&records));
        }
        Ok(())
    }
}

pub(crate) fn is_interrupt(record: &wire::Event, source: SourceId) -> bool {
    record.kind.get() == wire::event_type::INTERRUPT && record.source.get() == source.0
}
