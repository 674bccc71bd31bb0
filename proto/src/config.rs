// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration space.

use crate::{MAGIC, VERSION, wire};
use zerocopy::FromBytes;

/// What the configuration space says, for a device that speaks [`VERSION`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Greatest number of sources that the guest may hold at one time; 0 where the device delivers none (IRQ-DEV-11,
    /// IRQ-DEV-48). Ids of sources are below it.
    pub max_sources: u32,
    /// Greatest number of vectors that one request may name; at least [`Config::LEAST_MAX_VECTORS`].
    pub max_vectors: u16,
}

/// Why a configuration space is not one that this crate can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Fewer than [`Config::SIZE`] bytes.
    Short,
    /// The magic is not there: some other device uses the id.
    NotVirtioIrq,
    /// A version that this crate does not speak.
    Version(u16),
    /// `max_vectors` is below what every device must accept (IRQ-DEV-03).
    MaxVectors(u16),
}

impl Config {
    /// Size of the configuration space in bytes.
    pub const SIZE: usize = size_of::<wire::Config>();

    /// Least value of `max_vectors`: a whole MSI block fits one request (IRQ-DEV-03).
    pub const LEAST_MAX_VECTORS: u16 = 32;

    /// Reads the configuration space. Reserved bytes, and bytes beyond [`Config::SIZE`], belong to later additions and are
    /// ignored (IRQ-DRV-02).
    ///
    /// # Errors
    /// The device is to be left alone (IRQ-DRV-01, IRQ-DRV-03), and [`ConfigError`] says why.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let (raw, _) = wire::Config::read_from_prefix(bytes).map_err(|_| ConfigError::Short)?;
        if raw.magic.get() != MAGIC {
            return Err(ConfigError::NotVirtioIrq);
        }
        match raw.version.get() {
            VERSION => {}
            other => return Err(ConfigError::Version(other)),
        }
        let max_vectors = raw.max_vectors.get();
        if max_vectors < Self::LEAST_MAX_VECTORS {
            return Err(ConfigError::MaxVectors(max_vectors));
        }
        Ok(Self { max_sources: raw.max_sources.get(), max_vectors })
    }

    /// The configuration space as the device shows it.
    pub fn to_wire(self) -> wire::Config {
        wire::Config {
            magic: MAGIC.into(),
            version: VERSION.into(),
            max_sources: self.max_sources.into(),
            max_vectors: self.max_vectors.into(),
            ..Default::default()
        }
    }
}
