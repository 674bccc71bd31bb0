// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A card that answers nonsense, for tests of its driver.

use crate::mhi::{BHI_ENVIRONMENT, BHI_OFFSET, BHI_STATUS, STATUS, SYSTEM_ERROR, TRANSFER_FAILED};

/// What is wrong with the card. What it does is right all the while; it is what it tells that is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Nonsense {
    /// Nothing.
    #[default]
    None = 0,
    /// It left the bus: everything reads as all ones, and nothing that is written arrives.
    Gone = 1,
    /// MHI never gets ready.
    NeverReady = 2,
    /// What runs on it is nothing that MHI knows.
    UnknownEnvironment = 3,
    /// BHI is at the end of the address space.
    Elsewhere = 4,
    /// MHI is in the state of a system error from the beginning.
    SystemError = 5,
    /// The loader refuses every image.
    ImageRefused = 6,
}

impl Nonsense {
    const ALL: [Self; 7] = [
        Self::None,
        Self::Gone,
        Self::NeverReady,
        Self::UnknownEnvironment,
        Self::Elsewhere,
        Self::SystemError,
        Self::ImageRefused,
    ];

    /// The one with this number; none for a number that means nothing.
    pub(crate) fn new(number: u32) -> Self {
        Self::ALL.get(number as usize).copied().unwrap_or_default()
    }

    /// What a register reads as that holds `value`.
    pub(crate) fn read(self, address: u32, value: u32) -> u32 {
        match (self, address) {
            (Self::Gone, _) => u32::MAX,
            (Self::NeverReady, STATUS) => 0,
            (Self::UnknownEnvironment, BHI_ENVIRONMENT) => 0x5a5a_5a5a,
            (Self::Elsewhere, BHI_OFFSET) => 0xffff_fff0,
            (Self::SystemError, STATUS) => SYSTEM_ERROR,
            (Self::ImageRefused, BHI_STATUS) => TRANSFER_FAILED,
            _ => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Nonsense;

    #[test]
    fn each_has_its_number() {
        for (number, nonsense) in (0..).zip(Nonsense::ALL) {
            assert_eq!((nonsense as u32, Nonsense::new(number)), (number, nonsense));
        }
        assert_eq!(Nonsense::new(7), Nonsense::None);
    }
}
