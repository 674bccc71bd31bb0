// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The message in a function's MSI capability, read without any of the code that is under test.

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

/// Finds the MSI capability in a function's configuration space (PCI Local Bus 3.0, 6.7 and 6.8).
#[must_use]
pub fn capability(config: &[u8]) -> Option<Capability> {
    const MSI: u8 = 0x05;
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
        if *config.get(at)? == MSI {
            return read(config.get(at..)?);
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
    fn a_pair_reads_as_it_prints() {
        let pair = Pair { address: 0xfee0_0578, data: 0 };
        assert_eq!("fee00578/0000".parse::<Pair>().unwrap(), pair);
        assert!("fee00578".parse::<Pair>().is_err());
    }
}
