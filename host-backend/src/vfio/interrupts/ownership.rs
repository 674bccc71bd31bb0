// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is ours of a device that is the VMM's.

use super::{InterruptError, Interrupts, Ioctl, Lost, Operation};
use crate::rate::Limited;
use std::ops::Range;
use tracing::warn;

/// How many vectors one look takes in, so that it costs little however many there are.
const LOOKS: usize = 64;

impl<D: Ioctl> Interrupts<D> {
    /// Whether the type that was enabled here still is, and every vector that was armed here still signals our eventfd.
    ///
    /// The VMM can take both away without a word: when the guest enables interrupts in the function's own capability,
    /// QEMU puts its eventfds in the place of ours, from vector 0 on. It costs one ioctl, and two calls of `stat` for each
    /// vector that is looked at: the lowest one, and up to 64 others, in turns. It does not see a guest that switched MSI off
    /// in the function's registers; the messages then read as not enabled.
    ///
    /// # Errors
    /// What was lost. [`Interrupts::release`] is what is left to do.
    pub fn still_ours(&self) -> Result<(), Lost> {
        let Some(block) = &self.block else { return Ok(()) };
        if !self.is_active(block.irq_type)? {
            return Err(Lost::Disabled);
        }
        let mut replaced = Vec::new();
        let turn = self.turn.get();
        let (behind, before) = (turn.saturating_add(1).., ..=turn);
        let others = block.armed.range(behind).chain(block.armed.range(before)).take(LOOKS);
        for (vector, armed) in block.armed.first_key_value().into_iter().chain(others) {
            self.turn.set(*vector);
            let one = u32::from(*vector)..u32::from(*vector) + 1;
            let failed = self.failed(Operation::Ask, block.irq_type, one);
            if !armed.is_there().map_err(|errno| failed(errno.into()))? {
                replaced.push(*vector);
            }
        }
        replaced.sort_unstable();
        replaced.dedup();
        if replaced.is_empty() { Ok(()) } else { Err(Lost::Replaced(replaced)) }
    }

    /// Gives everything back that was enabled here, and nothing else: if the VMM has handlers on the type by now, only our
    /// eventfds go. (Vector 0 of MSI then keeps one that nobody reads, because the VMM's vectors need its message.)
    ///
    /// # Errors
    /// An ioctl failed; it can be tried again.
    pub fn release(&mut self) -> Result<(), InterruptError> {
        let Some(block) = &self.block else { return Ok(()) };
        let (irq_type, count) = (block.irq_type, block.count);
        if self.is_active(irq_type)? {
            if self.has_foreign_handlers(0..count) {
                self.disarm(0..count)?;
            } else {
                self.disable_type(irq_type)?;
            }
        }
        self.block = None;
        Ok(())
    }

    pub(super) fn release_quietly(&mut self) {
        // A guest decides how often there is something to release.
        static COMPLAINTS: Limited = Limited::new();
        if let Err(error) = self.release() {
            COMPLAINTS.run(|| warn!("{error}"));
        }
    }

    /// Whether somebody else set up any of the vectors, as far as the host shows it.
    pub(super) fn has_foreign_handlers(&self, vectors: Range<u16>) -> bool {
        let Some(block) = &self.block else { return false };
        let replaced = block.armed.range(vectors.clone()).any(|(_, armed)| armed.is_there() == Ok(false));
        let unarmed = |vector: &u16| !block.armed.contains_key(vector);
        replaced
            || (vectors.clone().any(|vector| unarmed(&vector))
                && self.handlers.present(block.irq_type).range(vectors).any(unarmed))
    }
}
