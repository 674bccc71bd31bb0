// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The card's PCI configuration space.
//!
//! Identity, BAR and the MSI capability are those of public `lspci -vv` listings. There is no PCI Express
//! capability: nothing here depends on one, and the emulated machine has it on its root bus.

use crate::memory::Words;

/// Size of BAR 0.
pub(crate) const BAR_SIZE: u32 = 2 << 20;

/// Size of the configuration space.
pub(crate) const SIZE: u32 = 256;

/// Number of MSI vectors.
pub(crate) const VECTORS: u32 = 32;

const COMMAND: u32 = 0x04;
const BAR0: u32 = 0x10;
const INTERRUPT: u32 = 0x3c;
const POWER: u32 = 0x40;
const MSI: u32 = 0x50;
const MSI_ADDRESS: u32 = MSI + 0x4;
const MSI_DATA: u32 = MSI + 0x8;
const MSI_MASK: u32 = MSI + 0xc;
const MSI_PENDING: u32 = MSI + 0x10;

/// In the upper half of the first word of the MSI capability: 2^5 vectors, each maskable.
const MSI_CONTROL: u32 = 0x010a;
const MSI_ENABLE: u32 = 1 << 16;

/// Initial words.
const WORDS: &[(u32, u32)] = &[
    (0x00, 0x1103_17cb),
    // There is a list of capabilities.
    (COMMAND, 0x0010_0000),
    // A network controller of no special kind, revision 1.
    (0x08, 0x0280_0001),
    // Memory, 64 bits wide.
    (BAR0, 0x0000_0004),
    (0x2c, 0x0108_17cb),
    (0x34, POWER),
    // Pin A.
    (INTERRUPT, 0x0000_0100),
    // Version 3; nothing is lost from D3hot to D0.
    (POWER, (0x0003 << 16) | (MSI << 8) | 0x01),
    (POWER + 4, 0x0000_0008),
    (MSI, (MSI_CONTROL << 16) | 0x05),
];

/// Bits that can be written.
const WRITABLE: &[(u32, u32)] = &[
    // Memory space, bus master, parity, SERR#, INTx off.
    (COMMAND, 0x0000_0546),
    (0x0c, 0x0000_00ff),
    (BAR0, !(BAR_SIZE - 1)),
    (BAR0 + 4, 0xffff_ffff),
    (INTERRUPT, 0x0000_00ff),
    // Power state, PME enable.
    (POWER + 4, 0x0000_0103),
    // MSI enable, number of vectors in use.
    (MSI, 0x0071_0000),
    (MSI_ADDRESS, 0xffff_fffc),
    (MSI_DATA, 0x0000_ffff),
    (MSI_MASK, 0xffff_ffff),
];

/// A message that the card sends through its MSI capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) address: u64,
    pub(crate) data: u32,
}

/// The configuration space.
#[derive(Debug)]
pub(crate) struct Config(Words);

impl Config {
    pub(crate) fn new() -> Self {
        let mut words = Words::new(SIZE);
        for &(at, value) in WORDS {
            words.set(at, value);
        }
        Self(words)
    }

    pub(crate) fn read(&self, word: u32) -> u32 {
        self.0.get(word)
    }

    /// Writes the word at `at` and returns the messages of vectors that were masked and came in the meantime.
    pub(crate) fn write(&mut self, at: u32, value: u32) -> Vec<Message> {
        let writable = WRITABLE.iter().find(|(word, _)| *word == at).map_or(0, |(_, bits)| *bits);
        let old = self.0.get(at);
        self.0.set(at, (old & !writable) | (value & writable));
        let due = self.0.get(MSI_PENDING) & !self.0.get(MSI_MASK);
        if due == 0 || !self.msi_is_on() {
            return Vec::new();
        }
        let vectors: Vec<_> = (0..VECTORS).filter(|vector| due & (1 << vector) != 0).collect();
        self.0.set(MSI_PENDING, self.0.get(MSI_PENDING) & !due);
        vectors.into_iter().map(|vector| self.message(vector)).collect()
    }

    /// Raises a vector: gives the message to send, unless MSI is off or the vector is masked. Whether the card is allowed
    /// to write to memory at all is for the other side to judge, as of any DMA.
    pub(crate) fn raise(&mut self, vector: u32) -> Option<Message> {
        if !self.msi_is_on() {
            return None;
        }
        // Fewer vectors in use than the card wants: it shares them.
        let vector = vector & self.low_bits();
        if self.0.get(MSI_MASK) & (1 << vector) != 0 {
            self.0.set(MSI_PENDING, self.0.get(MSI_PENDING) | (1 << vector));
            return None;
        }
        Some(self.message(vector))
    }

    fn msi_is_on(&self) -> bool {
        self.0.get(MSI) & MSI_ENABLE != 0
    }

    /// The bits of the data that tell vectors apart: 0 to 5, by how many vectors are in use.
    fn low_bits(&self) -> u32 {
        let logarithm = ((self.0.get(MSI) >> 20) & 7).min(5);
        !(u32::MAX << logarithm)
    }

    fn message(&self, vector: u32) -> Message {
        let data = (self.0.get(MSI_DATA) & !self.low_bits()) | vector;
        Message { address: self.0.get(MSI_ADDRESS).into(), data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled(vectors: u32) -> Config {
        let mut config = Config::new();
        assert!(config.write(COMMAND, 0x0006).is_empty());
        config.write(MSI_ADDRESS, 0xfee0_0218);
        config.write(MSI_DATA, 0x0040);
        config.write(MSI, MSI_ENABLE | (vectors.ilog2() << 20));
        config
    }

    #[test]
    fn the_capability_offers_32_vectors_32_bits_wide_at_0x50() {
        let config = Config::new();
        assert_eq!(config.read(0x50), 0x010a_0005);
        assert_eq!(config.read(0x34), 0x40);
        assert_eq!(config.read(0x40) >> 8 & 0xff, 0x50);
    }

    #[test]
    fn the_bar_says_its_size() {
        let mut config = Config::new();
        config.write(BAR0, 0xffff_ffff);
        config.write(BAR0 + 4, 0xffff_ffff);
        assert_eq!(config.read(BAR0), 0xffe0_0004);
        assert_eq!(config.read(BAR0 + 4), 0xffff_ffff);
    }

    #[test]
    fn what_is_read_only_stays() {
        let mut config = Config::new();
        config.write(0, 0);
        config.write(0x50, 0xffff_ffff);
        assert_eq!((config.read(0), config.read(0x50)), (0x1103_17cb, 0x017b_0005));
    }

    #[test]
    fn vectors_count_up_from_the_base_and_are_shared_where_fewer_are_in_use() {
        assert_eq!(enabled(32).raise(3), Some(Message { address: 0xfee0_0218, data: 0x43 }));
        assert_eq!(enabled(4).raise(6), Some(Message { address: 0xfee0_0218, data: 0x42 }));
        assert_eq!(enabled(1).raise(2), Some(Message { address: 0xfee0_0218, data: 0x40 }));
    }

    #[test]
    fn nothing_is_sent_while_msi_is_off() {
        let mut config = enabled(32);
        config.write(MSI, 0);
        assert_eq!(config.raise(1), None);
        assert_eq!(config.read(MSI_PENDING), 0);
    }

    #[test]
    fn a_masked_vector_comes_once_when_it_is_unmasked() {
        let mut config = enabled(32);
        config.write(MSI_MASK, 1 << 2);
        assert_eq!((config.raise(2), config.raise(2)), (None, None));
        assert_eq!(config.read(MSI_PENDING), 4);
        assert_eq!(config.write(MSI_MASK, 0), [Message { address: 0xfee0_0218, data: 0x42 }]);
        assert_eq!(config.read(MSI_PENDING), 0);
    }
}
