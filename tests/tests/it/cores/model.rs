// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the specification says the device does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use vhost_device_irq::device::Device;
use virtio_irq_driver::FindError;
use virtio_irq_proto::wire::ReplyHead;
use virtio_irq_proto::{FunctionId, IrqType, Message, Status};

/// A function of the joined pair. Two models, so that ids can be ambiguous.
#[derive(Clone, Copy, Debug)]
pub(super) struct Assignment {
    pub(super) id: u16,
    pub(super) model: u16,
    pub(super) guest_address: Option<u8>,
    pub(super) msi_count: u16,
    pub(super) msix_count: u16,
    pub(super) refused: bool,
    pub(super) native: bool,
}

/// What the specification says the device does.
pub(super) struct Model {
    pub(super) functions: BTreeMap<u16, ModelFunction>,
    pub(super) native: bool,
    pub(super) told: BTreeMap<(u16, IrqType, u16), Message>,
    pub(super) gone_events: VecDeque<u16>,
    /// Vectors whose told messages the device may know to be wrong by now.
    pub(super) moved: BTreeSet<(u16, IrqType, u16)>,
}

pub(super) struct ModelFunction {
    pub(super) assignment: Assignment,
    pub(super) enabled: u16,
    pub(super) failing: bool,
    pub(super) removed: bool,
    pub(super) found_gone: bool,
}

impl Model {
    pub(super) fn present(&self) -> impl Iterator<Item = u16> {
        self.functions.iter().filter(|(_, function)| !function.found_gone).map(|(id, _)| *id)
    }

    /// The specification's order of checks, from its text: `None` where nothing is written.
    pub(super) fn outcome(&mut self, bytes: &[u8], room: usize) -> Option<Result<(), Status>> {
        if room < size_of::<ReplyHead>() { None } else { Some(self.answer(bytes, room)) }
    }

    pub(super) fn answer(&mut self, bytes: &[u8], room: usize) -> Result<(), Status> {
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if bytes.len() < 8 {
            return Err(Status::Invalid);
        }
        let list = match field(0) {
            1 => true,
            2 if self.native => false,
            _ => return Err(Status::Unsupported),
        };
        let reserved: &[_] = if list { &[2..8, 12..16] } else { &[2..8, 11..12] };
        if bytes.len() != 16
            || reserved.iter().any(|range| bytes[range.clone()].iter().any(|byte| *byte != 0))
        {
            return Err(Status::Invalid);
        }
        let count = usize::from(if list { field(10) } else { field(14) });
        if count == 0 || !list && (!matches!(bytes[10], 1 | 2) || count > usize::from(Device::MAX_VECTORS)) {
            return Err(Status::Invalid);
        }
        if room < 16 + count * if list { 32 } else { 16 } {
            return Err(Status::BufferTooSmall);
        }
        if list {
            return Ok(());
        }
        let id = field(8);
        let function = self.functions.get_mut(&id).ok_or(Status::NoFunction)?;
        if function.found_gone {
            return Err(Status::FunctionGone);
        }
        let assignment = function.assignment;
        let vectors = if bytes[10] == 1 { assignment.msi_count } else { assignment.msix_count };
        let end = usize::from(field(12)) + count;
        if end > usize::from(vectors) {
            return Err(Status::NoVector);
        }
        if !assignment.native {
            return Err(Status::Unsupported);
        }
        if assignment.refused {
            return Err(Status::NotIsolated);
        }
        if function.removed {
            function.found_gone = true;
            self.gone_events.push_back(id);
            return Err(Status::FunctionGone);
        }
        if std::mem::take(&mut function.failing) {
            return Err(Status::HostError);
        }
        if end > usize::from(function.enabled) { Err(Status::NotEnabled) } else { Ok(()) }
    }

    /// Which entry belongs to a function of the guest (IRQ-DRV-04, IRQ-DRV-05).
    pub(super) fn find(&self, device: u8, model: u16, unique: bool) -> Result<u16, FindError> {
        let present: Vec<_> = self.present().map(|id| self.functions[&id].assignment).collect();
        if let Some(at) = present.iter().find(|a| a.guest_address == Some(device)) {
            return if at.model == model { Ok(at.id) } else { Err(FindError::OtherModel(FunctionId(at.id))) };
        }
        let alike: Vec<_> =
            present.iter().filter(|a| a.guest_address.is_none() && a.model == model).collect();
        match alike[..] {
            [] => Err(FindError::NoMatch),
            [one] if unique => Ok(one.id),
            _ => Err(FindError::Ambiguous),
        }
    }
}
