// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a check comes to, and what it shows for that.

use crate::guest::POISON;
use crate::link::LinkError;
use crate::provoke::ProvokeError;
use crate::report::Seen;
use virtio_irq_proto::{ReplyError, Status, wire};
use zerocopy::{FromBytes, IntoBytes};

/// Why a check does not end well.
#[derive(Debug)]
pub(crate) enum Miss {
    /// The requirement is broken.
    Broken { why: String, seen: Vec<Seen> },
    /// What the check needs is not to be had, so it says nothing about its requirement.
    Unseen(String),
}

pub(crate) type Outcome<T = ()> = Result<T, Miss>;

pub(crate) fn unseen<T>(why: impl Into<String>) -> Outcome<T> {
    Err(Miss::Unseen(why.into()))
}

pub(crate) fn broken<T>(why: impl Into<String>, seen: Vec<Seen>) -> Outcome<T> {
    Err(Miss::Broken { why: why.into(), seen })
}

impl From<LinkError> for Miss {
    fn from(error: LinkError) -> Self {
        Self::Unseen(format!("the vhost-user connection failed: {error}"))
    }
}

impl From<ProvokeError> for Miss {
    fn from(error: ProvokeError) -> Self {
        Self::Unseen(error.to_string())
    }
}

/// What became of a chain of the requestq.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The readable part.
    pub(crate) request: Vec<u8>,
    /// The used length.
    pub(crate) used: u32,
    /// All of the writable part, as it is after.
    pub(crate) writable: Vec<u8>,
    /// Whether the readable part is as it was.
    pub(crate) intact: bool,
}

impl Answer {
    /// The bytes of the reply.
    pub(crate) fn reply(&self) -> &[u8] {
        let end = usize::try_from(self.used).unwrap_or(usize::MAX).min(self.writable.len());
        self.writable.get(..end).unwrap_or_default()
    }

    /// The status, if there is one.
    pub(crate) fn status(&self) -> Option<u16> {
        Some(wire::ReplyHead::read_from_prefix(self.reply()).ok()?.0.status.get())
    }

    pub(crate) fn is(&self, status: Status) -> bool {
        self.status() == Some(status.to_wire())
    }

    /// Whether the device returned the chain as it got it.
    pub(crate) fn is_untouched(&self) -> bool {
        self.used == 0 && self.writable.iter().all(|byte| *byte == POISON)
    }

    /// What it came to, in words.
    pub(crate) fn outcome(&self) -> String {
        match self.status() {
            _ if self.used == 0 => "used length 0".to_owned(),
            Some(raw) => {
                Status::from_wire(raw).map_or(format!("status {raw}"), |status| format!("{status:?}"))
            }
            None => format!("used length {}", self.used),
        }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        vec![
            Seen { what: "request", bytes: self.request.clone() },
            Seen { what: "used length", bytes: self.used.to_le_bytes().to_vec() },
            Seen { what: "writable part", bytes: self.writable.clone() },
        ]
    }

    pub(crate) fn broken<T>(&self, why: impl Into<String>) -> Outcome<T> {
        broken(why, self.seen())
    }

    /// For a request that the check builds upon.
    pub(super) fn needed(&self, what: &str, error: ReplyError) -> Miss {
        let bytes: String = self.reply().iter().take(32).map(|byte| format!("{byte:02x}")).collect();
        Miss::Unseen(format!("needs {what}, which failed: {error} (reply {bytes})"))
    }
}

/// Records as bytes that show something.
pub(crate) fn seen_records(records: &[wire::Event]) -> Vec<Seen> {
    vec![Seen { what: "event records", bytes: records.as_bytes().to_vec() }]
}
