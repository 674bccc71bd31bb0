// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Structures as they lie in memory: little-endian, no padding, alignment 1.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use zerocopy::little_endian::{U16, U32, U64};

macro_rules! wire_struct {
    ($(#[$meta:meta])* $name:ident, $size:literal { $($(#[$fmeta:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

wire_struct! {
    /// `struct virtio_irq_config`: the configuration space. Read-only for the driver.
    Config, 16 {
        /// [`crate::MAGIC`].
        magic: U32,
        /// [`crate::VERSION`].
        version: U16,
        /// Zero.
        reserved0: [u8; 2],
        /// Greatest number of sources that the guest may hold at one time; 0 without [`crate::F_EVENT`].
        max_sources: U32,
        /// Greatest number of vectors that one request may name, at least 32.
        max_vectors: U16,
        /// Zero.
        reserved1: [u8; 2],
    }
}

wire_struct! {
    /// `struct virtio_irq_req_head`: begins every request.
    RequestHead, 8 {
        /// One of the request types in [`request_type`].
        kind: U16,
        /// Zero.
        reserved: [u8; 6],
    }
}

/// Values of [`RequestHead::kind`].
pub mod request_type {
    /// `VIRTIO_IRQ_REQ_LIST_FUNCTIONS`
    pub const LIST_FUNCTIONS: u16 = 1;
    /// `VIRTIO_IRQ_REQ_GET_MESSAGES`
    pub const GET_MESSAGES: u16 = 2;
    /// `VIRTIO_IRQ_REQ_ALLOCATE`
    pub const ALLOCATE: u16 = 16;
    /// `VIRTIO_IRQ_REQ_FREE`
    pub const FREE: u16 = 17;
    /// `VIRTIO_IRQ_REQ_MASK`
    pub const MASK: u16 = 18;
    /// `VIRTIO_IRQ_REQ_UNMASK`
    pub const UNMASK: u16 = 19;
    /// `VIRTIO_IRQ_REQ_RESET_FUNCTION`
    pub const RESET_FUNCTION: u16 = 20;
}

wire_struct! {
    /// `struct virtio_irq_list_functions`: asks for functions in ascending order of their ids.
    ListFunctions, 16 {
        /// Type [`request_type::LIST_FUNCTIONS`].
        head: RequestHead,
        /// Least id of interest.
        start: U16,
        /// Greatest number of functions to return, at least 1.
        count: U16,
        /// Zero.
        reserved: [u8; 4],
    }
}

wire_struct! {
    /// `struct virtio_irq_get_messages`: asks for the messages of a range of vectors.
    GetMessages, 16 {
        /// Type [`request_type::GET_MESSAGES`].
        head: RequestHead,
        /// Function id.
        function: U16,
        /// 1 MSI, 2 MSI-X.
        irq_type: u8,
        /// Zero.
        reserved: u8,
        /// First vector.
        first: U16,
        /// Number of vectors, at least 1.
        count: U16,
    }
}

wire_struct! {
    /// `struct virtio_irq_allocate`: asks for sources of a function.
    Allocate, 24 {
        /// Type [`request_type::ALLOCATE`].
        head: RequestHead,
        /// Function id.
        function: U16,
        /// 0 INTx, 1 MSI, 2 MSI-X.
        irq_type: u8,
        /// A [`crate::Layout`].
        layout: u8,
        /// Least number of sources that is of use, at least 1.
        least: U16,
        /// Greatest number of sources that is of use, at least `least` and at most `max_vectors`.
        most: U16,
        /// Least vector of interest.
        first: U16,
        /// A [`crate::Delivery`].
        delivery: u8,
        /// Zero.
        reserved: [u8; 5],
    }
}

wire_struct! {
    /// `struct virtio_irq_sources`: frees, masks or unmasks a range of sources.
    Sources, 16 {
        /// Type [`request_type::FREE`], [`request_type::MASK`] or [`request_type::UNMASK`].
        head: RequestHead,
        /// First source id.
        first: U32,
        /// Number of sources, at least 1.
        count: U16,
        /// Zero.
        reserved: [u8; 2],
    }
}

wire_struct! {
    /// `struct virtio_irq_reset_function`: frees all sources of a function.
    ResetFunction, 16 {
        /// Type [`request_type::RESET_FUNCTION`].
        head: RequestHead,
        /// Function id.
        function: U16,
        /// Zero.
        reserved: [u8; 6],
    }
}

wire_struct! {
    /// `struct virtio_irq_reply_head`: begins every reply; alone where the status is not `OK`.
    ReplyHead, 8 {
        /// A [`crate::Status`].
        status: U16,
        /// Zero.
        reserved: [u8; 6],
    }
}

wire_struct! {
    /// `struct virtio_irq_function_list`: reply to `LIST_FUNCTIONS`, followed by `count` [`Function`]s.
    FunctionListHead, 16 {
        /// Status `OK`.
        head: ReplyHead,
        /// Number of functions that follow.
        count: U16,
        /// Number of functions with still greater ids, which were not returned.
        remaining: U16,
        /// Zero.
        reserved: [u8; 4],
    }
}

wire_struct! {
    /// `struct virtio_irq_function`: one function that is assigned to this guest.
    Function, 32 {
        /// Id, chosen by the host.
        id: U16,
        /// Bits of [`crate::FunctionFlags`].
        flags: U16,
        /// Guest-visible address, `segment << 16 | bus << 8 | device << 3 | function`; 0 without its flag.
        guest_address: U32,
        /// PCI vendor id.
        vendor: U16,
        /// PCI device id.
        device: U16,
        /// PCI subsystem vendor id.
        subsystem_vendor: U16,
        /// PCI subsystem id.
        subsystem_device: U16,
        /// Configuration space dword 0x08: `class code << 8 | revision`.
        class_revision: U32,
        /// Number of INTx pins, 0 or 1.
        intx_count: U16,
        /// Number of MSI vectors of the capability, 0 without one.
        msi_count: U16,
        /// Number of MSI-X table entries, 0 without one.
        msix_count: U16,
        /// Zero.
        reserved: [u8; 6],
    }
}

wire_struct! {
    /// `struct virtio_irq_message_list`: reply to `GET_MESSAGES`, followed by `count` [`Message`]s.
    MessageListHead, 16 {
        /// Status `OK`.
        head: ReplyHead,
        /// Number of messages that follow: as many as were asked for.
        count: U16,
        /// Zero.
        reserved: [u8; 6],
    }
}

wire_struct! {
    /// `struct virtio_irq_message`: what a device must write to raise one vector.
    Message, 16 {
        /// Where to write.
        address: U64,
        /// What to write, as a 32-bit little-endian value.
        data: U32,
        /// Changes whenever address or data of this vector did.
        generation: U32,
    }
}

wire_struct! {
    /// `struct virtio_irq_source_list`: reply to `ALLOCATE`, followed by `count` [`Source`]s.
    SourceListHead, 16 {
        /// Status `OK`.
        head: ReplyHead,
        /// Number of sources that follow: from `least` to `most` of the request.
        count: U16,
        /// Zero.
        reserved: [u8; 6],
    }
}

wire_struct! {
    /// `struct virtio_irq_source`: one source that was allocated.
    Source, 24 {
        /// Source id.
        id: U32,
        /// Vector of the function.
        vector: U16,
        /// Zero.
        reserved: [u8; 2],
        /// What raises it; zeros for INTx.
        message: Message,
    }
}

wire_struct! {
    /// `struct virtio_irq_event`: one record in an event buffer.
    Event, 16 {
        /// One of the event types in [`event_type`].
        kind: U16,
        /// Function id.
        function: U16,
        /// Source id; 0 where the event has none.
        source: U32,
        /// First vector; 0 where the event has none.
        first: U16,
        /// Number of vectors; 0 where the event has none.
        count: U16,
        /// As in [`GetMessages::irq_type`]; 0 where the event has none.
        irq_type: u8,
        /// Zero.
        reserved: [u8; 3],
    }
}

/// Values of [`Event::kind`].
pub mod event_type {
    /// `VIRTIO_IRQ_EVT_INTERRUPT`
    pub const INTERRUPT: u16 = 1;
    /// `VIRTIO_IRQ_EVT_MESSAGE_CHANGED`
    pub const MESSAGE_CHANGED: u16 = 2;
    /// `VIRTIO_IRQ_EVT_SOURCE_REVOKED`
    pub const SOURCE_REVOKED: u16 = 3;
    /// `VIRTIO_IRQ_EVT_FUNCTION_GONE`
    pub const FUNCTION_GONE: u16 = 4;
}
