// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A function's MSI and MSI-X capabilities, read without any of the code that is under test.

use std::fmt;
use std::str::FromStr;

/// An MSI message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// Address.
    pub address: u64,
    /// Data.
    pub data: u32,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}/{:04x}", self.address, self.data)
    }
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (address, data) = text.split_once('/')?;
            Some(Self {
                address: u64::from_str_radix(address, 16).ok()?,
                data: u32::from_str_radix(data, 16).ok()?,
            })
        };
        parse().ok_or_else(|| format!("not an address/data pair: {text:?}"))
    }
}

/// An MSI capability as configuration space has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// The enable bit.
    pub enabled: bool,
    /// The message.
    pub pair: Pair,
}

/// Where configuration space says that the MSI-X table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// The enable bit.
    pub enabled: bool,
    /// Offset of the capability's control word in configuration space.
    pub control: usize,
    /// Number of entries.
    pub entries: usize,
    /// The BAR that it lies in.
    pub bar: usize,
    /// Where in that BAR, in bytes.
    pub offset: u64,
}

/// Size of an entry of an MSI-X table in words: the address, its upper half, the data, the mask.
pub const ENTRY: usize = 4;

/// Finds the MSI capability in a function's configuration space (PCI Local Bus 3.0, 6.7 and 6.8).
#[must_use]
pub fn capability(config: &[u8]) -> Option<Capability> {
    const MSI: u8 = 0x05;
    read(config.get(find(config, MSI)?..)?)
}

/// Finds the MSI-X capability in a function's configuration space.
#[must_use]
pub fn table(config: &[u8]) -> Option<Table> {
    const MSIX: u8 = 0x11;
    let at = find(config, MSIX)?;
    let half = u16::from_le_bytes(config.get(at + 2..at + 4)?.try_into().ok()?);
    let place = u32::from_le_bytes(config.get(at + 4..at + 8)?.try_into().ok()?);
    Some(Table {
        enabled: half & (1 << 15) != 0,
        control: at + 2,
        entries: usize::from(half & 0x7ff) + 1,
        bar: (place & 7) as usize,
        offset: u64::from(place & !7),
    })
}

/// The messages of an MSI-X table's entries.
#[must_use]
pub fn pairs(table: &[u32]) -> Vec<Pair> {
    let (entries, _) = table.as_chunks::<ENTRY>();
    let pair = |[low, high, data, _]: &[u32; ENTRY]| Pair {
        address: u64::from(*high) << 32 | u64::from(*low),
        data: *data,
    };
    entries.iter().map(pair).collect()
}

/// Where in configuration space the capability with this id is.
fn find(config: &[u8], id: u8) -> Option<usize> {
    const HAS_LIST: u8 = 1 << 4;
    // A list in 256 bytes has no more entries; a longer walk goes in a circle.
    const LONGEST: usize = 48;

    if config.get(6)? & HAS_LIST == 0 {
        return None;
    }
    let mut at = usize::from(*config.get(0x34)? & 0xfc);
    for _ in 0..LONGEST {
        if at == 0 {
            return None;
        }
        if *config.get(at)? == id {
            return Some(at);
        }
        at = usize::from(*config.get(at + 1)? & 0xfc);
    }
    None
}

fn read(capability: &[u8]) -> Option<Capability> {
    let half = |at: usize| Some(u16::from_le_bytes(capability.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(capability.get(at..at + 4)?.try_into().ok()?));
    let control = half(2)?;
    let wide = control & (1 << 7) != 0;
    let high = if wide { word(8)? } else { 0 };
    let data = half(if wide { 12 } else { 8 })?;
    let address = u64::from(high) << 32 | u64::from(word(4)?);
    Some(Capability { enabled: control & 1 != 0, pair: Pair { address, data: data.into() } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(control: u16, body: &[u8]) -> Vec<u8> {
        let mut config = vec![0; 256];
        config[6] = 0x10;
        config[0x34] = 0x80;
        config[0x80..0x82].copy_from_slice(&[0x01, 0x40]);
        config[0x40] = 0x05;
        config[0x42..0x44].copy_from_slice(&control.to_le_bytes());
        config[0x44..0x44 + body.len()].copy_from_slice(body);
        config
    }

    #[test]
    fn a_wide_capability_behind_another_is_read() {
        let config = config(0x81, &[0x78, 0x05, 0xe0, 0xfe, 1, 0, 0, 0, 0x34, 0x12]);
        let found = capability(&config).unwrap();
        assert!(found.enabled);
        assert_eq!(found.pair.to_string(), "1fee00578/1234");
    }

    #[test]
    fn a_narrow_capability_has_its_data_where_a_wide_one_has_the_high_address() {
        let found = capability(&config(0x00, &[0, 0, 0xe0, 0xfe, 0x20, 0])).unwrap();
        assert_eq!((found.enabled, found.pair), (false, Pair { address: 0xfee0_0000, data: 0x20 }));
    }

    #[test]
    fn a_circle_or_a_short_space_has_none() {
        let mut circle = config(1, &[]);
        circle[0x40] = 0x09;
        circle[0x41] = 0x80;
        assert_eq!(capability(&circle), None);
        assert_eq!(capability(&config(0x81, &[])[..0x48]), None);
    }

    #[test]
    fn the_table_of_an_msix_capability_is_found() {
        let mut space = config(0, &[]);
        space[0x40..0x48].copy_from_slice(&[0x11, 0, 0x09, 0x80, 0x03, 0x20, 0, 0]);
        let expected = Table { enabled: true, control: 0x42, entries: 10, bar: 3, offset: 0x2000 };
        assert_eq!(table(&space), Some(expected));
        assert_eq!(capability(&space), None);
        let words = [0xfee0_0418, 1, 3, 1, 0xfee0_0438, 0, 4, 0];
        assert_eq!(pairs(&words)[0].to_string(), "1fee00418/0003");
        assert_eq!(pairs(&words)[1].to_string(), "fee00438/0004");
    }

    #[test]
    fn a_pair_reads_as_it_prints() {
        let pair = Pair { address: 0xfee0_0578, data: 0 };
        assert_eq!("fee00578/0000".parse::<Pair>().unwrap(), pair);
        assert!("fee00578".parse::<Pair>().is_err());
    }
}
