// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What was found, for people and for programs.

use crate::Requirement;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::IsTerminal;

/// What the checker found out about one requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The device does it, as far as the check goes.
    Held,
    /// The device does not do it.
    Broken {
        /// What it does instead.
        why: String,
        /// The bytes that show it.
        seen: Vec<Seen>,
    },
    /// It cannot be seen from here, or not of this device.
    NotObservable(String),
}

/// Bytes of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What they are.
    pub what: &'static str,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A requirement, and what was found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The requirement.
    pub requirement: Requirement,
    /// What was found.
    pub verdict: Verdict,
}

/// Everything that was found about a device.
#[derive(Clone, Debug)]
pub struct Report {
    /// One for each device requirement, in the order of the text.
    pub findings: Vec<Finding>,
    /// Why the checks ended early, if they did: the device cannot be connected to, or did not survive a check.
    pub lost: Option<String>,
}

/// Bytes of an exchange that are shown to people; programs get all of them.
const SHOWN: usize = 64;

impl Report {
    /// Whether nothing is broken, and the device was there to the end.
    pub fn passed(&self) -> bool {
        self.lost.is_none() && self.broken().next().is_none()
    }

    /// Ids of the requirements that are broken.
    pub fn broken(&self) -> impl Iterator<Item = &'static str> + '_ {
        let broken = self.findings.iter().filter(|finding| matches!(finding.verdict, Verdict::Broken { .. }));
        broken.map(|finding| finding.requirement.id)
    }

    /// How many requirements are held, broken and not observable.
    pub fn counts(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        let [held, broken, unseen] = &mut counts;
        for finding in &self.findings {
            match finding.verdict {
                Verdict::Held => *held += 1,
                Verdict::Broken { .. } => *broken += 1,
                Verdict::NotObservable(_) => *unseen += 1,
            }
        }
        counts
    }

    /// One object for programs.
    pub fn json(&self) -> Value {
        let [held, broken, not_observable] = self.counts();
        let requirements = self.findings.iter().map(|Finding { requirement, verdict }| {
            let mut entry = json!({ "id": requirement.id, "requirement": requirement.sentence });
            let (word, why) = match verdict {
                Verdict::Held => ("held", None),
                Verdict::Broken { why, .. } => ("broken", Some(why)),
                Verdict::NotObservable(why) => ("not observable", Some(why)),
            };
            entry["verdict"] = word.into();
            if let Some(why) = why {
                entry["why"] = why.as_str().into();
            }
            if let Verdict::Broken { seen, .. } = verdict {
                let seen: Vec<_> = seen
                    .iter()
                    .map(|seen| json!({ "what": seen.what, "hex": hex(&seen.bytes, "") }))
                    .collect();
                entry["seen"] = seen.into();
            }
            entry
        });
        json!({
            "passed": self.passed(),
            "lost": self.lost,
            "held": held,
            "broken": broken,
            "not_observable": not_observable,
            "requirements": requirements.collect::<Vec<_>>(),
        })
    }

    /// A table for people: with lines on a terminal, Markdown elsewhere. What is held is left out unless `all`.
    pub fn table(&self, all: bool) -> String {
        let mut table = Table::new();
        if std::io::stdout().is_terminal() {
            table
                .load_style(presets::UTF8_FULL_CONDENSED)
                .set_content_arrangement(ContentArrangement::Dynamic);
        } else {
            table.load_style(presets::ASCII_MARKDOWN);
        }
        table.set_header(["requirement", "verdict", "what was seen"]);
        for Finding { requirement, verdict } in &self.findings {
            let (word, text) = match verdict {
                Verdict::Held if !all => continue,
                Verdict::Held => ("held", ""),
                Verdict::Broken { why, .. } => ("BROKEN", why.as_str()),
                Verdict::NotObservable(why) => ("not observable", why.as_str()),
            };
            table.add_row([requirement.id, word, text]);
        }
        if table.row_iter().next().is_none() { String::new() } else { format!("{table}\n") }
    }

    /// Each broken requirement with its sentence and the bytes that show it.
    pub fn details(&self) -> String {
        let mut text = String::new();
        for Finding { requirement, verdict } in &self.findings {
            let Verdict::Broken { why, seen } = verdict else { continue };
            // Writing to a string does not fail.
            let _ = writeln!(text, "\n{}: {}\n  {why}", requirement.id, requirement.sentence);
            for Seen { what, bytes } in seen {
                let shown = bytes.get(..SHOWN).unwrap_or(bytes);
                let rest = bytes.len() - shown.len();
                let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
                let _ = writeln!(text, "  {what}, {} bytes: {}{more}", bytes.len(), hex(shown, " "));
            }
        }
        text
    }
}

fn hex(bytes: &[u8], between: &str) -> String {
    let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(between)
}
