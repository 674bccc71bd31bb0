// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the fields of a vector mean, in this crate's types.

use crate::document::{EventFields, FunctionFields, MessageFields, RequestFields, SourceFields};
use std::num::NonZeroU16;
use virtio_irq_proto::{
    Allocate, Delivery, Event, Function, FunctionFlags, FunctionId, GetMessages, IrqType, Layout,
    ListFunctions, Message, PciAddress, PciIds, Request, ResetFunction, Source, SourceId, SourceRange,
    Status, VectorRange,
};

pub(crate) fn status_name(status: Status) -> &'static str {
    match status {
        Status::Ok => "OK",
        Status::Unsupported => "UNSUPPORTED",
        Status::Invalid => "INVALID",
        Status::BufferTooSmall => "BUFFER_TOO_SMALL",
        Status::NoFunction => "NO_FUNCTION",
        Status::NoVector => "NO_VECTOR",
        Status::NotEnabled => "NOT_ENABLED",
        Status::NotIsolated => "NOT_ISOLATED",
        Status::HostError => "HOST_ERROR",
        Status::FunctionGone => "FUNCTION_GONE",
        Status::NoSource => "NO_SOURCE",
        Status::Busy => "BUSY",
        Status::NoSpace => "NO_SPACE",
        Status::NotContiguous => "NOT_CONTIGUOUS",
        Status::NotReady => "NOT_READY",
    }
}

fn irq_type(name: &str) -> IrqType {
    match name {
        "INTX" => IrqType::Intx,
        "MSI" => IrqType::Msi,
        "MSIX" => IrqType::Msix,
        other => panic!("no type of interrupts: {other}"),
    }
}

/// Vectors that have messages.
fn range(name: &str, first: u16, count: u16) -> VectorRange {
    VectorRange::of_messages(irq_type(name), first, count).unwrap()
}

fn sources(first: u32, count: u16) -> SourceRange {
    SourceRange::new(first, count).unwrap()
}

impl RequestFields {
    pub(crate) fn request(&self) -> Request {
        match self {
            Self::ListFunctions { start, count } => Request::ListFunctions(ListFunctions {
                start: FunctionId(*start),
                count: NonZeroU16::new(*count).unwrap(),
            }),
            Self::GetMessages { function, irq_type, first, count } => Request::GetMessages(GetMessages {
                function: FunctionId(*function),
                vectors: range(irq_type, *first, *count),
            }),
            Self::Allocate { function, irq_type: name, layout, least, most, first, delivery } => {
                Request::Allocate(Allocate {
                    function: FunctionId(*function),
                    irq_type: irq_type(name),
                    layout: match layout.as_str() {
                        "ANY" => Layout::Any,
                        "CONTIGUOUS" => Layout::Contiguous,
                        other => panic!("no layout {other}"),
                    },
                    least: NonZeroU16::new(*least).unwrap(),
                    most: NonZeroU16::new(*most).unwrap(),
                    first: *first,
                    delivery: match delivery.as_str() {
                        "EVENT" => Delivery::Event,
                        other => panic!("no delivery {other}"),
                    },
                })
            }
            Self::Free { first, count } => Request::Free(sources(*first, *count)),
            Self::Mask { first, count } => Request::Mask(sources(*first, *count)),
            Self::Unmask { first, count } => Request::Unmask(sources(*first, *count)),
            Self::ResetFunction { function } => {
                Request::ResetFunction(ResetFunction { function: FunctionId(*function) })
            }
        }
    }
}

impl FunctionFields {
    pub(crate) fn function(&self) -> Function {
        let flags = self.flags.iter().fold(FunctionFlags::default(), |flags, name| {
            let flag = match name.as_str() {
                "GUEST_ADDRESS" => FunctionFlags::GUEST_ADDRESS,
                "ISOLATED" => FunctionFlags::ISOLATED,
                "STABLE" => FunctionFlags::STABLE,
                "NATIVE" => FunctionFlags::NATIVE,
                "EVENT" => FunctionFlags::EVENT,
                other => panic!("no flag {other}"),
            };
            flags.with(flag, true)
        });
        Function {
            id: FunctionId(self.id),
            flags,
            guest_address: self.guest_address.as_deref().map(pci_address),
            ids: PciIds {
                vendor: self.vendor,
                device: self.device,
                subsystem_vendor: self.subsystem_vendor,
                subsystem_device: self.subsystem_device,
                class_revision: self.class_revision,
            },
            intx_count: self.intx_count,
            msi_count: self.msi_count,
            msix_count: self.msix_count,
        }
    }
}

fn pci_address(text: &str) -> PciAddress {
    let address: PciAddress = text.parse().unwrap();
    assert_eq!(address.to_string(), text);
    address
}

fn address(text: &str) -> u64 {
    u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap()
}

impl MessageFields {
    pub(crate) fn message(&self) -> Message {
        Message { address: address(&self.address), data: self.data, generation: self.generation }
    }
}

impl SourceFields {
    pub(crate) fn source(&self) -> Source {
        let message =
            Message { address: address(&self.address), data: self.data, generation: self.generation };
        Source { id: SourceId(self.id), vector: self.vector, message }
    }
}

impl EventFields {
    pub(crate) fn event(&self) -> Event {
        match self {
            Self::Interrupt { function, source } => {
                Event::Interrupt { function: FunctionId(*function), source: SourceId(*source) }
            }
            Self::SourceRevoked { function, source } => {
                Event::SourceRevoked { function: FunctionId(*function), source: SourceId(*source) }
            }
            Self::MessageChanged { function, irq_type, first, count } => Event::MessageChanged {
                function: FunctionId(*function),
                vectors: range(irq_type, *first, *count),
            },
            Self::FunctionGone { function } => Event::FunctionGone { function: FunctionId(*function) },
        }
    }
}
