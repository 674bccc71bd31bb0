// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requirements, as the specification has them.

/// The specification that this checker was built with.
const TEXT: &str = include_str!("../../../spec/virtio-irq.md");

/// A requirement of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Its id.
    pub id: &'static str,
    /// Its sentence, as Markdown.
    pub sentence: &'static str,
}

/// The requirements for devices, in the order of the text.
pub fn device_requirements() -> impl Iterator<Item = Requirement> {
    TEXT.lines().filter_map(|line| {
        let (_, rest) = line.strip_prefix("- <a id=\"irq-dev-")?.split_once("\"></a>**")?;
        let (id, sentence) = rest.split_once("** ")?;
        Some(Requirement { id, sentence })
    })
}
