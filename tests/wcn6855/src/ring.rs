// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rings that hold a message.
//!
//! Each has three registers in the card's own address space, which ath11k's `hal.c` writes: the lower half of the
//! address; four bytes on, bits 7 to 0 of its upper half and the enable bit; eight bytes on, the data.

/// A ring's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// What ath11k calls it.
    pub name: &'static str,
    /// Address of its first register in the card's own address space, beyond the window.
    pub register: u32,
}

/// In the second register: the ring may send its message.
pub const ENABLE: u32 = 1 << 8;

/// In the second register: the upper bits of the address.
pub const ADDRESS_HIGH: u32 = 0xff;

/// The card's address of the copy engines.
const CE: u32 = 0x1b8_0000;
/// The card's address of the buffer manager.
const WBM: u32 = 0xa3_4000;
/// The card's address of the reorder engine.
const REO: u32 = 0xa3_8000;

const fn ring(name: &'static str, register: u32) -> Ring {
    Ring { name, register }
}

/// The rings. Their index is what the test page takes.
///
/// The first 13 are those at which a trace of a real card, made for a proposed QEMU quirk, saw messages being written;
/// ath11k programs the last four besides. All addresses agree with ath11k's tables.
pub const RINGS: [Ring; 17] = [
    ring("ce0 source", CE + 0x48),
    ring("ce1 destination", CE + 0x3048),
    ring("ce1 status", CE + 0x30a0),
    ring("ce2 destination", CE + 0x5048),
    ring("ce2 status", CE + 0x50a0),
    ring("ce3 source", CE + 0x6048),
    ring("ce5 destination", CE + 0xb048),
    ring("ce5 status", CE + 0xb0a0),
    ring("ce7 source", CE + 0xe048),
    ring("wbm0 release", WBM + 0x968),
    ring("wbm3 release", WBM + 0xa70),
    ring("reo exception", REO + 0x49c),
    ring("reo status", REO + 0x5a4),
    ring("reo1 destination", REO + 0x28c),
    ring("reo2 destination", REO + 0x2e4),
    ring("reo3 destination", REO + 0x33c),
    ring("reo4 destination", REO + 0x394),
];

#[cfg(test)]
mod tests {
    use super::RINGS;

    /// Where a ring is in BAR 0 when the window shows its part of the card.
    fn in_window(register: u32) -> u32 {
        0x8_0000 + (register & 0x7_ffff)
    }

    #[test]
    fn the_first_rings_are_where_the_trace_saw_them() {
        let traced = [
            0x80048, 0x83048, 0x830a0, 0x85048, 0x850a0, 0x86048, 0x8b048, 0x8b0a0, 0x8e048, 0xb4968,
            0xb4a70, 0xb849c, 0xb85a4,
        ];
        let rings: Vec<_> = RINGS.iter().take(traced.len()).map(|ring| in_window(ring.register)).collect();
        assert_eq!(rings, traced);
    }

    #[test]
    fn no_ring_overlaps_another() {
        let mut registers: Vec<_> = RINGS.iter().map(|ring| ring.register).collect();
        registers.sort_unstable();
        assert!(registers.windows(2).all(|pair| pair[1] - pair[0] >= 12));
    }
}
