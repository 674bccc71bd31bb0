// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The value of `--device`.

use crate::host::sim::KINDS;
use crate::vfio::{DeviceSource, SourceError};
use std::fmt;
use std::str::FromStr;
use virtio_irq_proto::{PciAddress, PciIds};

/// One function that is assigned to the guest, as the operator says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// What it is on the host.
    pub model: Model,
    /// Where the guest sees it.
    pub guest: Option<PciAddress>,
    /// Its id, if the operator chose it.
    pub id: Option<u16>,
}

/// What a function is on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// A PCI function, and where its VFIO device comes from.
    Host(PciAddress, Option<DeviceSource>),
    /// A simulation.
    Sim {
        /// What the operator called it.
        name: String,
        /// Its ids.
        ids: PciIds,
        /// Number of MSI vectors.
        msi_count: u16,
        /// Number of MSI-X table entries.
        msix_count: u16,
    },
}

/// What is wrong with a `--device`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum SpecError {
    #[error("{text:?} is no PCI address: write it as 0000:02:00.0 or 02:00.0")]
    Address { text: String },
    #[error("there is no simulated {text:?}: use one of {}, or sim:vectors=N[,type=msi|msix]", kinds())]
    Kind { text: String },
    #[error(
        "{text:?} is no option of a device: use guest=ADDRESS, id=N, or with sim: vectors=N, type=msi|msix"
    )]
    Option { text: String },
    #[error("{key}= is given twice")]
    Twice { key: String },
    #[error("{key}= is for sim: devices without a KIND")]
    NotHere { key: String },
    #[error("id={text} is no number from 0 to 65535")]
    Id { text: String },
    #[error("vectors={text} is not possible: MSI has 1, 2, 4, 8, 16 or 32 vectors, MSI-X 1 to 2048")]
    Vectors { text: String },
    #[error("vfio= is not possible: {0}")]
    Vfio(#[from] SourceError),
    #[error("vfio= is for PCI functions, not for sim: devices")]
    NotSimulated,
    #[error("type={text} is not possible: it is msi or msix")]
    Type { text: String },
}

fn kinds() -> String {
    KINDS.map(|kind| format!("sim:{}", kind.name)).join(", ")
}

/// Ids of a simulated function that nothing is said about: QEMU's vendor id for examples.
const ANY_IDS: PciIds = PciIds {
    vendor: 0x1234,
    device: 0x0001,
    subsystem_vendor: 0x1234,
    subsystem_device: 0x0001,
    class_revision: 0xff00_0000,
};

impl FromStr for DeviceSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (simulated, rest) = match text.strip_prefix("sim:") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let mut parts = rest.split(',').peekable();
        // Without a KIND the options follow at once.
        let name = match parts.peek() {
            Some(first) if simulated && first.contains('=') => None,
            _ => parts.next(),
        };
        let mut options = Options::default();
        for part in parts {
            options.add(part)?;
        }
        if simulated && options.vfio.is_some() {
            return Err(SpecError::NotSimulated);
        }
        let model = match (simulated, name) {
            (true, None) => options.vectors()?,
            (true, Some(kind)) => {
                options.refuse_vectors()?;
                kind_named(kind)?
            }
            (false, name) => {
                options.refuse_vectors()?;
                Model::Host(address(name.unwrap_or_default())?, options.vfio.map(str::parse).transpose()?)
            }
        };
        Ok(Self {
            model,
            guest: options.guest.map(address).transpose()?,
            id: options
                .id
                .map(|text| text.parse().map_err(|_| SpecError::Id { text: text.to_owned() }))
                .transpose()?,
        })
    }
}

#[derive(Default)]
struct Options<'a> {
    guest: Option<&'a str>,
    id: Option<&'a str>,
    vfio: Option<&'a str>,
    vectors: Option<&'a str>,
    irq_type: Option<&'a str>,
}

impl<'a> Options<'a> {
    fn add(&mut self, text: &'a str) -> Result<(), SpecError> {
        let unknown = || SpecError::Option { text: text.to_owned() };
        let (key, value) = text.split_once('=').ok_or_else(unknown)?;
        let place = match key {
            "guest" => &mut self.guest,
            "id" => &mut self.id,
            "vfio" => &mut self.vfio,
            "vectors" => &mut self.vectors,
            "type" => &mut self.irq_type,
            _ => return Err(unknown()),
        };
        match place.replace(value) {
            None => Ok(()),
            Some(_) => Err(SpecError::Twice { key: key.to_owned() }),
        }
    }

    fn refuse_vectors(&self) -> Result<(), SpecError> {
        let key = self.vectors.map(|_| "vectors").or(self.irq_type.map(|_| "type"));
        key.map_or(Ok(()), |key| Err(SpecError::NotHere { key: key.to_owned() }))
    }

    fn vectors(&self) -> Result<Model, SpecError> {
        let text = self.vectors.unwrap_or("1");
        let count: u16 = text.parse().unwrap_or(0);
        let (msi_count, msix_count) = match self.irq_type.unwrap_or("msi") {
            "msi" => (count, 0),
            "msix" => (0, count),
            text => return Err(SpecError::Type { text: text.to_owned() }),
        };
        let possible = matches!(msi_count, 1 | 2 | 4 | 8 | 16 | 32) || (1..=2048).contains(&msix_count);
        if !possible {
            return Err(SpecError::Vectors { text: text.to_owned() });
        }
        Ok(Model::Sim { name: "sim".to_owned(), ids: ANY_IDS, msi_count, msix_count })
    }
}

fn kind_named(text: &str) -> Result<Model, SpecError> {
    let kind = KINDS
        .iter()
        .find(|kind| kind.name == text)
        .ok_or_else(|| SpecError::Kind { text: text.to_owned() })?;
    Ok(Model::Sim {
        name: format!("sim:{}", kind.name),
        ids: kind.ids,
        msi_count: kind.msi_count,
        msix_count: kind.msix_count,
    })
}

fn address(text: &str) -> Result<PciAddress, SpecError> {
    text.parse().map_err(|_| SpecError::Address { text: text.to_owned() })
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(address, _) => address.fmt(f),
            Self::Sim { name, .. } => f.write_str(name),
        }
    }
}
