// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `spec/vectors.json` as it is written.

use serde::Deserialize;
use virtio_irq_proto::VERSION;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    #[serde(rename = "license")]
    _license: String,
    pub(crate) protocol_version: u16,
    pub(crate) vectors: Vec<Vector>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vector {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) direction: Direction,
    pub(crate) meaning: String,
    pub(crate) hex: String,
    pub(crate) expect: String,
    /// False where a reader accepts bytes that a writer would not write.
    #[serde(default = "yes")]
    pub(crate) canonical: bool,
    pub(crate) fields: Option<serde_json::Value>,
    pub(crate) writable: Option<usize>,
    pub(crate) features: Option<Vec<String>>,
    pub(crate) max_vectors: Option<u16>,
    pub(crate) max_sources: Option<u32>,
    pub(crate) request: Option<String>,
    pub(crate) status: Option<u16>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Config,
    Request,
    Reply,
    Events,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Direction {
    DriverToDevice,
    DeviceToDriver,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigFields {
    pub(crate) max_sources: u32,
    pub(crate) max_vectors: u16,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum RequestFields {
    ListFunctions {
        start: u16,
        count: u16,
    },
    GetMessages {
        function: u16,
        irq_type: String,
        first: u16,
        count: u16,
    },
    Allocate {
        function: u16,
        irq_type: String,
        layout: String,
        least: u16,
        most: u16,
        first: u16,
        delivery: String,
    },
    Free {
        first: u32,
        count: u16,
    },
    Mask {
        first: u32,
        count: u16,
    },
    Unmask {
        first: u32,
        count: u16,
    },
    ResetFunction {
        function: u16,
    },
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListFields {
    pub(crate) functions: Vec<FunctionFields>,
    pub(crate) remaining: u16,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct FunctionFields {
    pub(crate) id: u16,
    pub(crate) flags: Vec<String>,
    pub(crate) guest_address: Option<String>,
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) subsystem_vendor: u16,
    pub(crate) subsystem_device: u16,
    pub(crate) class_revision: u32,
    pub(crate) intx_count: u16,
    pub(crate) msi_count: u16,
    pub(crate) msix_count: u16,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessagesFields {
    pub(crate) messages: Vec<MessageFields>,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessageFields {
    /// As text: a 64-bit number does not fit the numbers of every JSON reader.
    pub(crate) address: String,
    pub(crate) data: u32,
    pub(crate) generation: u32,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourcesFields {
    pub(crate) sources: Vec<SourceFields>,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceFields {
    pub(crate) id: u32,
    pub(crate) vector: u16,
    pub(crate) address: String,
    pub(crate) data: u32,
    pub(crate) generation: u32,
}

/// A reply that says nothing but that it is done.
#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct DoneFields {}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventsFields {
    pub(crate) events: Vec<EventFields>,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum EventFields {
    Interrupt { function: u16, source: u32 },
    SourceRevoked { function: u16, source: u32 },
    MessageChanged { function: u16, irq_type: String, first: u16, count: u16 },
    FunctionGone { function: u16 },
}

pub(crate) fn yes() -> bool {
    true
}

pub(crate) fn vectors() -> Vec<Vector> {
    let document: Document = serde_json::from_str(include_str!("../../../spec/vectors.json")).unwrap();
    assert_eq!(document.protocol_version, VERSION);
    document.vectors
}

pub(crate) fn of_kind(kind: Kind) -> Vec<Vector> {
    let vectors: Vec<_> = vectors().into_iter().filter(|vector| vector.kind == kind).collect();
    assert!(!vectors.is_empty());
    vectors
}

impl Vector {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let digits: Vec<_> =
            self.hex.chars().map(|c| u8::try_from(c.to_digit(16).unwrap()).unwrap()).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    pub(crate) fn fields<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        self.fields.clone().map(|value| {
            serde_json::from_value(value).unwrap_or_else(|error| panic!("fields of {}: {error}", self.name))
        })
    }

    pub(crate) fn valid<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        let fields = self.fields();
        assert_eq!(fields.is_some(), self.expect == "valid", "{}", self.name);
        fields
    }
}
