// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! INTx: one level-triggered interrupt, which the kernel masks until it is told that it was handled.

use super::{Block, Data, InterruptError, Interrupts, Ioctl, Operation, SetAction};
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use virtio_irq_proto::IrqType;

impl<D: Ioctl> Interrupts<D> {
    /// Enables INTx with this eventfd, in the place of the VMM's. The kernel masks INTx each time that it signals;
    /// [`Interrupts::unmask_intx`] lets it through again.
    ///
    /// # Errors
    /// As for [`Interrupts::enable`].
    pub fn enable_intx(&mut self, eventfd: BorrowedFd<'_>) -> Result<(), InterruptError> {
        let present = self.info(IrqType::Intx)?.count;
        if present == 0 {
            return Err(self.no_vector(IrqType::Intx, 0..1, present));
        }
        self.make_room()?;
        self.set(SetAction::Trigger, IrqType::Intx, 0, Data::Eventfds(&[Some(eventfd)]))
            .map_err(self.failed(Operation::Enable, IrqType::Intx, 0..1))?;
        self.block = Some(Block { irq_type: IrqType::Intx, count: 1, parking: None, armed: BTreeMap::new() });
        self.note(IrqType::Intx, 0, false);
        let seen = self
            .block
            .as_ref()
            .is_some_and(|block| block.armed.values().all(|armed| armed.handler.is_some()));
        if !seen && self.handlers.are_shown(IrqType::Intx) {
            self.release_quietly();
            return Err(InterruptError::OtherFunction { function: self.function });
        }
        Ok(())
    }

    /// Lets INTx through again. If the function still asserts it, the eventfd is signalled at once.
    ///
    /// # Errors
    /// [`InterruptError::NotEnabled`] if it is not ours, or the ioctl failed.
    pub fn unmask_intx(&self) -> Result<(), InterruptError> {
        match self.irq_type()? {
            IrqType::Intx => self.simple(Operation::Unmask, SetAction::Unmask, IrqType::Intx, 0, 1),
            _ => Err(InterruptError::NotEnabled { function: self.function }),
        }
    }
}
