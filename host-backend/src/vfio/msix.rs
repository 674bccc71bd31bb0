// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The MSI-X table through VFIO.

use super::VfioDevice;
use crate::device::Pair;
use std::io;

/// Where a function has its MSI-X table, by its capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixTable {
    /// Number of the BAR, 0 to 5.
    pub bar: u8,
    /// Offset in it, in bytes.
    pub offset: u64,
    /// Number of entries, 1 to 2048.
    pub entries: u16,
}

/// Address low, address high, data, vector control.
const ENTRY_WORDS: usize = 4;
const ENTRY_SIZE: u64 = 16;

impl VfioDevice {
    /// Reads the messages of `count` entries of the table from `first` on, as the host programmed them. An entry that was
    /// never programmed has the address 0.
    ///
    /// # Errors
    /// EINVAL if the table has no such entries; what [`VfioDevice::read_bar`] says.
    pub fn read_msix_table(&self, table: MsixTable, first: u16, count: u16) -> io::Result<Vec<Pair>> {
        let end = u32::from(first) + u32::from(count);
        if end > u32::from(table.entries) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut words = vec![0; usize::from(count) * ENTRY_WORDS];
        self.read_bar(table.bar, table.offset + u64::from(first) * ENTRY_SIZE, &mut words)?;
        let (entries, _) = words.as_chunks::<ENTRY_WORDS>();
        Ok(entries
            .iter()
            .map(|&[low, high, data, _]| Pair { address: u64::from(high) << 32 | u64::from(low), data })
            .collect())
    }
}
