// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Replies as bytes.

use virtio_irq_proto::wire::{self, FunctionListHead, MessageListHead, SourceListHead};
use virtio_irq_proto::{Message, Source, Status};
use zerocopy::IntoBytes;

/// What the device writes into the device-writable part of a chain. Its length is the used length.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Reply(Vec<u8>);

impl Reply {
    /// The bytes to write, from the first device-writable byte on; empty where the chain is returned untouched.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn nothing() -> Self {
        Self(Vec::new())
    }

    pub(super) fn status(status: Status) -> Self {
        Self(status.to_head().as_bytes().to_vec())
    }

    /// `remaining` functions with greater ids were left out. There are at most as many functions as ids.
    pub(super) fn functions(listed: &[wire::Function], remaining: usize) -> Self {
        let head = FunctionListHead {
            head: Status::Ok.to_head(),
            count: saturate(listed.len()).into(),
            remaining: saturate(remaining).into(),
            ..Default::default()
        };
        Self([head.as_bytes(), listed.as_bytes()].concat())
    }

    pub(super) fn messages(messages: &[Message]) -> Self {
        let head = MessageListHead {
            head: Status::Ok.to_head(),
            count: saturate(messages.len()).into(),
            ..Default::default()
        };
        let messages: Vec<wire::Message> = messages.iter().map(|message| message.to_wire()).collect();
        Self([head.as_bytes(), messages.as_bytes()].concat())
    }

    pub(super) fn sources(sources: impl Iterator<Item = Source>) -> Self {
        let sources: Vec<wire::Source> = sources.map(Source::to_wire).collect();
        let head = SourceListHead {
            head: Status::Ok.to_head(),
            count: saturate(sources.len()).into(),
            ..Default::default()
        };
        Self([head.as_bytes(), sources.as_bytes()].concat())
    }
}

fn saturate(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}
