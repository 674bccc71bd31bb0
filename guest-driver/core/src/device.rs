// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Recognizing a device and agreeing on features.

use core::fmt;
use core::num::NonZeroU16;
use virtio_irq_proto::{Config, ConfigError, F_EVENT, F_NATIVE};

/// A device that this driver can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    config: Config,
}

/// Why a driver leaves a device alone (IRQ-DRV-01).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// The configuration space is not one of this protocol and version.
    Config(ConfigError),
    /// The device offers nothing that this driver uses.
    NoDelivery,
}

impl Device {
    /// Device-specific feature bits that this driver understands, as a mask.
    pub const FEATURES: u64 = 1 << F_NATIVE | 1 << F_EVENT;

    /// Looks at the configuration space and at the features that both sides have agreed on.
    ///
    /// # Errors
    /// The driver must leave the device alone.
    pub fn probe(config: &[u8], negotiated: u64) -> Result<Self, ProbeError> {
        let config = Config::parse(config).map_err(ProbeError::Config)?;
        if negotiated & Self::FEATURES == 0 {
            return Err(ProbeError::NoDelivery);
        }
        Ok(Self { config })
    }

    /// Greatest number of vectors that one request may name.
    pub const fn max_vectors(&self) -> u16 {
        self.config.max_vectors
    }

    /// Source ids are below this; 0 where the device delivers no sources.
    pub const fn max_sources(&self) -> u32 {
        self.config.max_sources
    }

    /// The same device for a driver whose buffers hold a reply about `most` vectors: no request names more.
    #[must_use]
    pub fn with_vectors_at_most(mut self, most: NonZeroU16) -> Self {
        self.config.max_vectors = self.config.max_vectors.min(most.get());
        self
    }
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(ConfigError::Short) => f.write_str("the configuration space is too short"),
            Self::Config(ConfigError::NotVirtioIrq) => {
                f.write_str("not a virtio-irq device: the magic is missing")
            }
            Self::Config(ConfigError::Version(version)) => {
                write!(f, "the device speaks version {version}, which this driver does not know")
            }
            Self::Config(ConfigError::MaxVectors(max)) => {
                write!(f, "the device takes only {max} vectors a request, fewer than every device must")
            }
            Self::NoDelivery => f.write_str("the device offers no kind of delivery that this driver knows"),
        }
    }
}

impl core::error::Error for ProbeError {}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: [u8; 16] = *b"VIRQ\x01\x00\0\0\0\0\0\0\x40\x01\0\0";

    #[test]
    fn a_device_with_native_delivery_is_used() {
        let device = Device::probe(&CONFIG, 1).unwrap();
        assert_eq!(device.max_vectors(), 0x140);
    }

    #[test]
    fn a_device_of_another_kind_or_version_is_left_alone() {
        let with = |at: usize, byte: u8| {
            let mut config = CONFIG;
            config[at] = byte;
            Device::probe(&config, 1)
        };
        assert_eq!(with(0, b'v'), Err(ProbeError::Config(ConfigError::NotVirtioIrq)));
        assert_eq!(with(4, 2), Err(ProbeError::Config(ConfigError::Version(2))));
        assert_eq!(with(13, 0).unwrap().max_vectors(), 0x40);
        let mut config = CONFIG;
        config[12..14].copy_from_slice(&[31, 0]);
        assert_eq!(Device::probe(&config, 1), Err(ProbeError::Config(ConfigError::MaxVectors(31))));
        assert_eq!(Device::probe(&CONFIG[..15], 1), Err(ProbeError::Config(ConfigError::Short)));
    }

    #[test]
    fn a_driver_with_small_buffers_asks_for_fewer_vectors() {
        let device = Device::probe(&CONFIG, 1).unwrap();
        let most = |count| device.with_vectors_at_most(NonZeroU16::new(count).unwrap()).max_vectors();
        assert_eq!(most(5), 5);
        assert_eq!(most(0x141), 0x140);
    }

    #[test]
    fn a_device_without_a_known_kind_of_delivery_is_left_alone() {
        assert_eq!(Device::probe(&CONFIG, 1 << 32 | 1 << 2), Err(ProbeError::NoDelivery));
    }
}
