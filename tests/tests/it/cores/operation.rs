// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What driver and host do, and with which functions.

use super::model::Assignment;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use virtio_irq_proto::IrqType;

#[derive(Clone, Debug)]
pub(super) enum Operation {
    /// Bytes that a driver might send, and the room for the reply.
    Raw(Vec<u8>, usize),
    /// A well-formed request with any field values.
    Get {
        function: usize,
        irq_type: u8,
        first: u16,
        count: u16,
        room_off: i8,
    },
    List {
        start: u16,
        count: u16,
    },
    /// The driver's own operations.
    Fetch {
        function: usize,
        irq_type: IrqType,
        first: u16,
        count: NonZeroU16,
    },
    Find {
        device: u8,
        model: u16,
        unique: bool,
    },
    Events(usize),
    Negotiate(bool),
    Reset,
    /// What the host does meanwhile.
    Enable {
        function: usize,
        count: u16,
    },
    Move(usize),
    Fail(usize),
    Remove(usize),
}

prop_compose! {
    fn assignment()(
        id in prop_oneof![0..40_u16, any::<u16>().prop_filter("an id that never was", |id| *id != 0xabcd)],
        model in 0..2_u16,
        guest_address in proptest::option::of(0..32_u8),
        msi_count in prop_oneof![Just(0), Just(1), Just(16), Just(32)],
        msix_count in prop_oneof![Just(0_u16), 1..=64_u16, Just(2048)],
        refused in proptest::bool::weighted(0.1),
        native in proptest::bool::weighted(0.9),
    ) -> Assignment {
        Assignment { id, model, guest_address, msi_count, msix_count, refused, native }
    }
}

/// Functions with different ids, no two of them at one guest address.
pub(super) fn assignments() -> impl Strategy<Value = BTreeMap<u16, Assignment>> {
    prop_oneof![3 => vec(assignment(), 0..4), 1 => vec(assignment(), 0..24)].prop_map(|all| {
        let mut addresses = BTreeSet::new();
        let unique = all.into_iter().map(|mut a| {
            a.guest_address = a.guest_address.filter(|address| addresses.insert(*address));
            (a.id, a)
        });
        unique.collect()
    })
}

/// Numbers at which ranges begin and end, and the ones around them.
fn bound() -> impl Strategy<Value = u16> {
    prop_oneof![0..40_u16, 2040..2060_u16, any::<u16>(), Just(u16::MAX)]
}

/// Sizes of MSI blocks: ranges that end exactly where others do.
fn size() -> impl Strategy<Value = u16> {
    prop_oneof![Just(1_u16), Just(16), Just(32)]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let any_bytes = vec(any::<u8>(), 0..20);
    // A valid type and length, so that the fields are looked at.
    let shaped = (1..4_u8, vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 15..18)).prop_map(
        |(kind, mut rest)| {
            rest.insert(0, kind);
            rest.truncate(17);
            rest
        },
    );
    prop_oneof![any_bytes, shaped]
}

pub(super) fn operation() -> impl Strategy<Value = Operation> {
    let function = 0..26_usize;
    let irq_type = prop_oneof![2 => Just(IrqType::Msi), 2 => Just(IrqType::Msix)];
    let count = prop_oneof![4 => size(), 2 => 1..40_u16, 1 => 2000..5000_u16, 1 => 1..=u16::MAX];
    prop_oneof![
        2 => (bytes(), 0..100_usize).prop_map(|(bytes, room)| Operation::Raw(bytes, room)),
        4 => (function.clone(), 0..4_u8, bound(), bound(), prop_oneof![3 => Just(0_i8), 1 => -20..20_i8]).prop_map(
            |(function, irq_type, first, count, room_off)| Operation::Get { function, irq_type, first, count, room_off }
        ),
        2 => (bound(), bound()).prop_map(|(start, count)| Operation::List { start, count }),
        8 => (function.clone(), irq_type, prop_oneof![4 => Just(0), 4 => 0..4_u16, 1 => bound()], count).prop_map(
            |(function, irq_type, first, count)| Operation::Fetch {
                function,
                irq_type,
                first,
                count: NonZeroU16::new(count).unwrap(),
            }
        ),
        2 => (0..32_u8, 0..2_u16, any::<bool>())
            .prop_map(|(device, model, unique)| Operation::Find { device, model, unique }),
        2 => (0..6_usize).prop_map(Operation::Events),
        1 => proptest::bool::weighted(0.7).prop_map(Operation::Negotiate),
        1 => Just(Operation::Reset),
        2 => (function.clone(), prop_oneof![3 => size(), 1 => 0..40_u16, 1 => Just(u16::MAX)])
            .prop_map(|(function, count)| Operation::Enable { function, count }),
        2 => function.clone().prop_map(Operation::Move),
        1 => function.clone().prop_map(Operation::Fail),
        1 => function.prop_map(Operation::Remove),
    ]
}
