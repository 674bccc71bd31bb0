// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An igb in a guest, by its registers (Intel 82576 datasheet, section 8.8).

use super::functions::IGB;
use crate::agent::Agent;
use crate::error::Result;

/// Vectors of its MSI-X table.
pub(super) const VECTORS: usize = 10;

/// Raises interrupts in software: a bit for each vector.
const EICS: usize = 0x1520;

/// What it takes for that: multiple MSI-X vectors with their causes kept in EICR; causes cleared and not masked when a vector
/// is sent; all causes unmasked.
const PREPARATION: [(usize, u32); 4] =
    [(0x1514, 0x8000_0011), (0x152c, (1 << VECTORS) - 1), (0x1530, 0), (0x1524, (1 << VECTORS) - 1)];

/// The registers of the function.
pub(super) struct Igb<'a> {
    guest: &'a Agent,
}

impl<'a> Igb<'a> {
    /// Prepares it to raise vectors by [`Igb::raise`]. Its memory has to be on.
    pub(super) fn prepare(guest: &'a Agent) -> Result<Self> {
        let igb = Self { guest };
        PREPARATION.iter().try_for_each(|(register, value)| igb.store(*register, *value))?;
        Ok(igb)
    }

    /// Lets the function raise a vector.
    pub(super) fn raise(&self, vector: usize) -> Result<()> {
        self.store(EICS, 1 << vector)
    }

    fn store(&self, register: usize, value: u32) -> Result<()> {
        self.guest.store(&IGB.in_guest("resource0"), register, value)
    }
}
