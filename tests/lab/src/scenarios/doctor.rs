// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the doctor says of a machine of the lab.

use crate::agent::Agent;
use crate::checks::{Verdict, expect};
use crate::error::{Error, Result};
use crate::host::payload;
use crate::msi::Pair;
use serde_json::Value;
use virtio_irq_lab_agent::End;

/// Its report, and how it ended.
pub(super) struct Findings {
    end: End,
    report: Value,
}

/// Lets the doctor look.
pub(super) fn examine(agent: &Agent, arguments: &[&str]) -> Result<Findings> {
    let program = payload("vhost-device-irq");
    let argv: Vec<_> = [&program, "doctor", "--json"].into_iter().chain(arguments.iter().copied()).collect();
    let (end, output, error) = agent.judge(&argv)?;
    let report = serde_json::from_str(&output)
        .map_err(|why| Error::Unexpected(format!("the doctor's report ({end}): {why}: {output}{error}")))?;
    Ok(Findings { end, report })
}

impl Findings {
    /// Whether nothing stands in the way.
    pub(super) fn works(&self) -> Verdict {
        let function = &self.report["functions"][0];
        let reasons: Vec<_> = [&self.report["machine"], function]
            .into_iter()
            .filter_map(|subject| subject["findings"].as_array())
            .flatten()
            .filter(|finding| finding["weight"] != "works")
            .filter_map(|finding| finding["text"].as_str())
            .collect();
        let says = function["verdict"].as_str().unwrap_or("nothing");
        let seen = match reasons.is_empty() {
            true => format!("{says}, {}; {}", self.end, self.report["machine"]["facts"]),
            false => format!("{says}, {}: {}", self.end, reasons.join("; ")),
        };
        expect(self.end == End::Code(0) && says == "works" && self.report["verdict"] == "works", seen)
    }

    /// Whether the function's first vector is enabled with this pair and a process of this name holds it.
    pub(super) fn sees(&self, pair: Pair, holder: &str) -> Verdict {
        let facts = &self.report["functions"][0]["facts"];
        let message = &facts["enabled"][0];
        let holders = &facts["held open by"]["holders"];
        let same = message["address"] == pair.address && message["data"] == pair.data;
        let held = holders[0]["name"] == holder;
        expect(same && held, format!("enabled: {message}; held open by {holders}; the host has {pair}"))
    }
}
