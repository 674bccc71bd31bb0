// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading an event buffer.

use virtio_irq_proto::{Event, wire};
use zerocopy::FromBytes;

/// The events in a buffer; `used` are the bytes that the device says it wrote.
///
/// Records of unknown types and a last record that is not whole are passed over (IRQ-DRV-12).
pub fn events(used: &[u8]) -> impl Iterator<Item = Event> + '_ {
    used.chunks_exact(Event::SIZE)
        .filter_map(|chunk| wire::Event::read_from_bytes(chunk).ok())
        .filter_map(|raw| Event::parse(&raw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_irq_proto::{FunctionId, IrqType, VectorRange};
    use zerocopy::IntoBytes;
    extern crate std;
    use std::vec::Vec;

    #[test]
    fn known_records_are_read_and_others_passed_over() {
        let gone = Event::FunctionGone { function: FunctionId(7) };
        let vectors = VectorRange::of_messages(IrqType::Msi, 3, 2).unwrap();
        let changed = Event::MessageChanged { function: FunctionId(2), vectors };
        let unknown = wire::Event { kind: 77.into(), ..Default::default() };
        let empty_range = wire::Event { count: 0.into(), ..changed.to_wire() };
        let buffer = [gone.to_wire(), unknown, empty_range, changed.to_wire(), gone.to_wire()];
        let used = &buffer.as_bytes()[..5 * 16 - 1];
        assert_eq!(events(used).collect::<Vec<_>>(), [gone, changed]);
        assert_eq!(events(&[]).count(), 0);
    }
}
