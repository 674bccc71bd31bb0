// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What driver, host and VMM do.

use super::{FUNCTIONS, QUOTA};
use proptest::collection::vec;
use proptest::prelude::*;
use virtio_irq_proto::{IrqType, Layout, SourceRequest};

#[derive(Clone, Debug)]
pub(super) enum Operation {
    Allocate {
        function: u16,
        irq_type: IrqType,
        layout: Layout,
        least: u16,
        more: u16,
        first: u16,
    },
    Range(SourceRequest, u32, u16),
    ResetFunction(u16),
    /// The driver looks at the replies, or at the event buffers, that the device has returned.
    TakeReplies,
    TakeEvents,
    /// The driver makes event buffers for so many records available.
    Give(Vec<usize>),
    /// The device does what it has to do.
    Work,
    /// The host: a vector is raised, calls fail, the VMM takes interrupts away, messages move, a function leaves.
    Fire(usize, u16),
    Fail(usize, u32, u32),
    TakeAway(usize),
    Move(usize),
    Remove(usize),
    /// How many vectors the host has to give.
    Limit(usize, u16),
    /// The VMM: pauses the machine, resets it, ends.
    Pause,
    Reset,
    Die,
}

pub(super) fn operation() -> impl Strategy<Value = Operation> {
    let function = 0..FUNCTIONS.len();
    let irq_type = prop_oneof![1 => Just(IrqType::Intx), 4 => Just(IrqType::Msi), 3 => Just(IrqType::Msix)];
    let layout = prop_oneof![3 => Just(Layout::Any), 2 => Just(Layout::Contiguous)];
    let request = prop_oneof![
        2 => Just(SourceRequest::Free),
        2 => Just(SourceRequest::Mask),
        3 => Just(SourceRequest::Unmask)
    ];
    let first = prop_oneof![20 => 0..QUOTA.guest, 1 => Just(u32::MAX), 1 => any::<u32>()];
    let count = prop_oneof![10 => Just(1_u16), 10 => 1..6_u16, 1 => 1..=u16::MAX];
    prop_oneof![
        10 => (0..4_u16, irq_type, layout, 1..5_u16, 0..9_u16, prop_oneof![4 => Just(0), 3 => 0..8_u16, 1 => any::<u16>()])
            .prop_map(|(function, irq_type, layout, least, more, first)| {
                Operation::Allocate { function, irq_type, layout, least, more, first }
            }),
        12 => (request, first, count).prop_map(|(request, first, count)| Operation::Range(request, first, count)),
        1 => (0..4_u16).prop_map(Operation::ResetFunction),
        5 => Just(Operation::TakeReplies),
        5 => Just(Operation::TakeEvents),
        5 => vec(prop_oneof![3 => Just(1_usize), 1 => 1..5_usize], 1..4).prop_map(Operation::Give),
        5 => Just(Operation::Work),
        18 => (function.clone(), 0..10_u16).prop_map(|(function, vector)| Operation::Fire(function, vector)),
        2 => (function.clone(), 0..3_u32, 0..4_u32)
            .prop_map(|(function, after, count)| Operation::Fail(function, after, count)),
        1 => function.clone().prop_map(Operation::TakeAway),
        1 => function.clone().prop_map(Operation::Move),
        1 => function.clone().prop_map(Operation::Remove),
        1 => (function, prop_oneof![1 => 0..8_u16, 1 => Just(u16::MAX)])
            .prop_map(|(function, count)| Operation::Limit(function, count)),
        1 => prop_oneof![Just(Operation::Pause), Just(Operation::Reset), Just(Operation::Die)],
    ]
}
