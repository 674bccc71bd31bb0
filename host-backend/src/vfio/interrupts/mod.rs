// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts that the host allocates, on a device that a VMM owns.
//!
//! What the kernel does is in drivers/vfio/pci/vfio_pci_intrs.c. A function has one interrupt type enabled at a time,
//! and enabling a type that is enabled already *replaces* eventfds, whoever set them. So this asks first, and before it
//! disables anything it makes sure that nobody else's handlers go with it.

mod error;
mod intx;
#[cfg(test)]
pub(crate) mod kernel;
mod ownership;
#[cfg(test)]
mod tests;

pub use error::{InterruptError, Lost, Operation};

use super::handlers::{Handler, Handlers};
use super::{Data, Host, Ioctl, IrqInfo, IrqSet, SetAction, VfioDevice};
use crate::sys;
use rustix::io::Errno;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use tracing::debug;
use virtio_irq_proto::{IrqType, PciAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The interrupts of one function, as far as they are ours. Dropping it releases them.
#[derive(Debug)]
pub struct Interrupts<D: Ioctl = VfioDevice> {
    device: D,
    function: PciAddress,
    handlers: Handlers,
    block: Option<Block>,
    /// The vector that [`Interrupts::still_ours`] looked at last.
    turn: Cell<u16>,
}

/// A type that we enabled.
#[derive(Debug)]
struct Block {
    irq_type: IrqType,
    /// Number of vectors from 0 on that the kernel allocated.
    count: u16,
    /// What MSI vector 0 has while nobody else uses it. The kernel takes a vector's message back with its last handler
    /// (`msi_domain_deactivate` in kernel/irq/msi.c), and for MSI the message of vector 0 is the one in the capability,
    /// from which all others count.
    parking: Option<EventFd>,
    /// The vectors that have an eventfd of ours.
    armed: BTreeMap<u16, Armed>,
}

#[derive(Debug)]
struct Armed {
    /// Shows whether it still has it. There is nothing to show where the host hides its handlers.
    handler: Option<Handler>,
    /// Whether it is [`Block::parking`].
    parked: bool,
}

impl Armed {
    fn is_there(&self) -> Result<bool, Errno> {
        self.handler.as_ref().map_or(Ok(true), Handler::is_there)
    }
}

impl<D: Ioctl> Interrupts<D> {
    /// Nothing is enabled yet, and nothing is asked of the device.
    pub fn new(device: D, host: &Host, function: PciAddress) -> Self {
        Self { device, function, handlers: Handlers::of(host, function), block: None, turn: Cell::new(0) }
    }

    /// The device that they are of.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// What is enabled here: the type and its number of vectors.
    pub fn enabled(&self) -> Option<(IrqType, u16)> {
        self.block.as_ref().map(|block| (block.irq_type, block.count))
    }

    /// What the function has of a type.
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn info(&self, irq_type: IrqType) -> Result<IrqInfo, InterruptError> {
        self.device.irq_info(irq_type).map_err(self.failed(Operation::Information, irq_type, 0..0))
    }

    /// The type that is enabled on the device now, by whomever.
    ///
    /// Asking changes nothing and raises nothing: raising a vector on the condition `false` is refused unless the type
    /// is enabled.
    ///
    /// # Errors
    /// An ioctl failed.
    pub fn active(&self) -> Result<Option<IrqType>, InterruptError> {
        for irq_type in [IrqType::Intx, IrqType::Msi, IrqType::Msix] {
            if self.is_active(irq_type)? {
                return Ok(Some(irq_type));
            }
        }
        Ok(None)
    }

    fn is_active(&self, irq_type: IrqType) -> Result<bool, InterruptError> {
        match self.set(SetAction::Trigger, irq_type, 0, Data::False) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) => Err(self.failed(Operation::Ask, irq_type, 0..1)(error)),
        }
    }

    /// Enables MSI or MSI-X with at least `least` and at most `most` vectors, none of which has an eventfd yet, and returns
    /// how many it became.
    ///
    /// INTx is switched off for it if the VMM has it on, which QEMU does for every function with a pin. VFIO cannot
    /// give that back: the VMM sets INTx up again when it next resets the function.
    ///
    /// # Errors
    /// [`InterruptError::NoVector`] if the function has fewer than `least` at all, [`InterruptError::TooFew`] if the host
    /// has fewer now, [`InterruptError::InUse`] if MSI or MSI-X is enabled already, [`InterruptError::OtherFunction`] if
    /// the interrupts became another function's, or an ioctl failed. After any of them nothing is enabled here.
    pub fn enable(&mut self, irq_type: IrqType, least: u16, most: u16) -> Result<u16, InterruptError> {
        let present = self.info(irq_type)?.count;
        let (least, most) = (least.max(1), most.min(u16::try_from(present).unwrap_or(u16::MAX)));
        if irq_type == IrqType::Intx || most < least {
            return Err(self.no_vector(irq_type, 0..u32::from(least), present));
        }
        self.make_room()?;
        let mut wanted = most;
        loop {
            let none = vec![None; usize::from(wanted)];
            let available = self
                .set(SetAction::Trigger, irq_type, 0, Data::Eventfds(&none))
                .map_err(self.failed(Operation::Enable, irq_type, 0..u32::from(wanted)))?;
            if available == 0 {
                self.block = Some(Block { irq_type, count: wanted, parking: None, armed: BTreeMap::new() });
                self.settle().inspect_err(|_| self.release_quietly())?;
                return Ok(wanted);
            }
            // Each round asks for less, so there are at most `most` of them.
            match u16::try_from(available).ok().filter(|available| *available < wanted) {
                Some(available) if available >= least => wanted = available,
                _ => {
                    return Err(InterruptError::TooFew {
                        function: self.function,
                        irq_type,
                        wanted: least,
                        available,
                    });
                }
            }
        }
    }

    /// What is left to do when a block is enabled.
    fn settle(&mut self) -> Result<(), InterruptError> {
        if self.handlers.numbers(self.irq_type()?).is_empty() {
            return Err(InterruptError::OtherFunction { function: self.function });
        }
        self.park()
    }

    /// Gives MSI vector 0 an eventfd that nobody reads, so that the block keeps its message.
    fn park(&mut self) -> Result<(), InterruptError> {
        let Some(block) = self.block.as_mut().filter(|block| block.irq_type == IrqType::Msi) else {
            return Ok(());
        };
        let earlier = block.parking.take();
        let parking = earlier.map_or_else(|| EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK), Ok);
        let parking = parking.map_err(self.failed(Operation::Arm, IrqType::Msi, 0..1))?;
        self.set(SetAction::Trigger, IrqType::Msi, 0, Data::Eventfds(&[Some(sys::borrow(&parking))]))
            .map_err(self.failed(Operation::Arm, IrqType::Msi, 0..1))?;
        if let Some(block) = &mut self.block {
            block.parking = Some(parking);
        }
        self.note(IrqType::Msi, 0, true);
        Ok(())
    }

    /// The vector just got an eventfd of ours.
    fn note(&mut self, irq_type: IrqType, vector: u16, parked: bool) {
        let handler = self.handlers.find(irq_type, vector);
        if let Some(block) = &mut self.block {
            block.armed.insert(vector, Armed { handler, parked });
        }
    }

    /// Sees to it that no type is enabled.
    fn make_room(&self) -> Result<(), InterruptError> {
        match self.active()? {
            None => Ok(()),
            Some(irq_type) if self.block.is_some() || irq_type != IrqType::Intx => {
                Err(InterruptError::InUse { function: self.function, irq_type })
            }
            Some(_) => {
                debug!("{}: switching INTx off", self.function);
                self.disable_type(IrqType::Intx)
            }
        }
    }

    /// Gives the vectors from `first` on these eventfds, new or in the place of older ones of ours.
    ///
    /// # Errors
    /// [`InterruptError::NotEnabled`], also if the VMM disabled the type meanwhile; [`InterruptError::NoVector`] if the
    /// block does not have all of them; [`InterruptError::InUse`] if the VMM took one of them over; or the ioctl failed,
    /// and after that none of these vectors has an eventfd.
    pub fn arm(&mut self, first: u16, eventfds: &[BorrowedFd<'_>]) -> Result<(), InterruptError> {
        let vectors = self.within(first, eventfds.len())?;
        let irq_type = self.irq_type()?;
        // On a type that is not enabled the ioctl would enable it, with fewer vectors.
        if !self.is_active(irq_type)? {
            return Err(InterruptError::NotEnabled { function: self.function });
        }
        if self.has_foreign_handlers(vectors.clone()) {
            return Err(InterruptError::InUse { function: self.function, irq_type });
        }
        let fds: Vec<_> = eventfds.iter().copied().map(Some).collect();
        match self.set(SetAction::Trigger, irq_type, u32::from(first), Data::Eventfds(&fds)) {
            Ok(0) => {}
            // It was disabled since we asked, and could not be enabled again.
            Ok(_) => return Err(InterruptError::NotEnabled { function: self.function }),
            Err(error) => {
                let error = self.failed(Operation::Arm, irq_type, wide(&vectors))(error);
                // What the kernel did not get to still has its old eventfd.
                self.disarm(vectors.clone())?;
                let has_none = |block: &Block| !block.armed.contains_key(&0);
                if vectors.contains(&0) && self.block.as_ref().is_some_and(has_none) {
                    self.park()?;
                }
                return Err(error);
            }
        }
        for vector in vectors {
            self.note(irq_type, vector, false);
        }
        Ok(())
    }

    /// Takes their eventfds from the vectors, as far as they have any of ours. What they raise from now on is lost, and on
    /// a host that remaps interrupts it is a fault that the host logs. With MSI-X their messages are gone too; they come
    /// back, and on a host that remaps interrupts the same, when the vectors are armed again.
    ///
    /// # Errors
    /// [`InterruptError::NotEnabled`] or an ioctl failed; then those vectors that are left can be tried again.
    pub fn disarm(&mut self, vectors: Range<u16>) -> Result<(), InterruptError> {
        let irq_type = self.irq_type()?;
        // On a type that is not enabled the ioctl would enable it.
        let active = self.is_active(irq_type)?;
        let Some(block) = &mut self.block else { return Ok(()) };
        let mut ours = Vec::new();
        block.armed.retain(|vector, armed| {
            let there = active && armed.is_there().unwrap_or(true);
            if vectors.contains(vector) && there && !armed.parked {
                ours.push(*vector);
            }
            !vectors.contains(vector) || there
        });
        if irq_type == IrqType::Msi && ours.first() == Some(&0) {
            self.park()?;
            ours.remove(0);
        }
        let mut result = Ok(());
        for run in ours.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let range = u32::from(*first)..u32::from(*last) + 1;
            let none = vec![None; run.len()];
            match self.set(SetAction::Trigger, irq_type, range.start, Data::Eventfds(&none)) {
                Ok(_) => {
                    if let Some(block) = &mut self.block {
                        block.armed.retain(|vector, _| !run.contains(vector));
                    }
                }
                // The others all the same.
                Err(error) => {
                    result = result.and(Err(self.failed(Operation::Disarm, irq_type, range)(error)))
                }
            }
        }
        result
    }

    /// Has the kernel signal the eventfd of a vector, whosever it is, as if the function had raised it.
    ///
    /// # Errors
    /// As for [`Interrupts::arm`].
    pub fn raise(&self, vector: u16) -> Result<(), InterruptError> {
        self.within(vector, 1)?;
        self.simple(Operation::Raise, SetAction::Trigger, self.irq_type()?, u32::from(vector), 1)
    }

    fn disable_type(&self, irq_type: IrqType) -> Result<(), InterruptError> {
        self.simple(Operation::Disable, SetAction::Trigger, irq_type, 0, 0)
    }

    fn simple(
        &self,
        operation: Operation,
        action: SetAction,
        irq_type: IrqType,
        first: u32,
        count: u32,
    ) -> Result<(), InterruptError> {
        let vectors = first..first.saturating_add(count);
        let result = self.set(action, irq_type, first, Data::None(count));
        result.map(drop).map_err(self.failed(operation, irq_type, vectors))
    }

    fn set(&self, action: SetAction, irq_type: IrqType, first: u32, data: Data<'_>) -> io::Result<u32> {
        self.device.set_irqs(&IrqSet { irq_type, action, first, data })
    }

    fn irq_type(&self) -> Result<IrqType, InterruptError> {
        let block = self.block.as_ref();
        block.map(|block| block.irq_type).ok_or(InterruptError::NotEnabled { function: self.function })
    }

    /// The vectors, if all of them are in the block.
    fn within(&self, first: u16, count: usize) -> Result<Range<u16>, InterruptError> {
        let Some(block) = &self.block else {
            return Err(InterruptError::NotEnabled { function: self.function });
        };
        let end = u16::try_from(count).ok().and_then(|count| first.checked_add(count));
        match end.filter(|end| *end <= block.count) {
            Some(end) => Ok(first..end),
            None => {
                let end = u32::from(first).saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
                Err(self.no_vector(block.irq_type, u32::from(first)..end, u32::from(block.count)))
            }
        }
    }

    fn no_vector(&self, irq_type: IrqType, vectors: Range<u32>, present: u32) -> InterruptError {
        InterruptError::NoVector { function: self.function, irq_type, vectors, present }
    }

    fn failed(
        &self,
        operation: Operation,
        irq_type: IrqType,
        vectors: Range<u32>,
    ) -> impl FnOnce(io::Error) -> InterruptError + use<D> {
        let function = self.function;
        move |source| InterruptError::Call { function, operation, irq_type, vectors, source }
    }
}

impl<D: Ioctl> Drop for Interrupts<D> {
    fn drop(&mut self) {
        self.release_quietly();
    }
}

fn wide(vectors: &Range<u16>) -> Range<u32> {
    u32::from(vectors.start)..u32::from(vectors.end)
}
