// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the doctor says: facts, findings and the verdict that follows from them.
//!
//! Every text from outside passes through [`printable`] on its way in here, so neither a terminal nor a reader of the
//! JSON sees a control character that a device, a process or a kernel log brought.

use crate::printable::printable;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// Everything that was found. Its JSON form is for machines; fields are added, never changed, within a `version`.
#[derive(Debug, Serialize)]
pub struct Report {
    version: u32,
    /// `host` or `guest`.
    pub view: &'static str,
    /// The worst of all subjects' verdicts.
    pub verdict: Verdict,
    /// The machine.
    pub machine: Subject,
    /// The functions.
    pub functions: Vec<Subject>,
    /// What the kernel logged that means something here.
    pub log: Vec<Symptom>,
    /// Why the kernel's log could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_unreadable: Option<String>,
}

/// How well virtio-irq can work. From good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It works as it is.
    Works,
    /// It works once somebody does what is said.
    Remedy,
    /// It cannot work here.
    Cannot,
}

/// The machine or one of its functions.
#[derive(Debug, Serialize)]
pub struct Subject {
    /// What it is called: the function's address.
    pub name: String,
    /// What it is.
    pub title: String,
    /// What is to be expected of it.
    pub verdict: Verdict,
    /// What was found out.
    pub facts: Facts,
    /// What that means, where it means something.
    pub findings: Vec<Finding>,
}

/// What was found out, in the order in which it is shown.
#[derive(Debug, Default)]
pub struct Facts(Vec<Fact>);

/// One thing that was found out.
#[derive(Debug)]
pub struct Fact {
    /// What it is about.
    pub name: &'static str,
    /// For a person.
    pub text: String,
    /// For a machine.
    pub value: Value,
    /// How it looks.
    pub mark: Mark,
}

/// How a fact looks to somebody who wants virtio-irq to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// As it should be.
    Good,
    /// Neither here nor there.
    Neutral,
    /// Something is to be done about it.
    Poor,
    /// Nothing can be done about it.
    Bad,
}

/// Something that the operator should know or do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it lets become of the verdict; [`Verdict::Works`] is a remark.
    pub weight: Verdict,
    /// What is the matter, and why it matters.
    pub text: String,
    /// What to type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// Lines of the kernel's log that are known to mean something.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Symptom {
    /// The newest of them.
    pub line: String,
    /// Seconds from the kernel's start to the newest.
    pub seconds: f64,
    /// How many there are.
    pub count: usize,
    /// The function that the newest is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// What they mean.
    pub meaning: &'static str,
    /// What to do.
    pub advice: &'static str,
}

impl Report {
    /// Sums up.
    pub fn new(
        view: &'static str,
        machine: Subject,
        functions: Vec<Subject>,
        log: Result<Vec<Symptom>, String>,
    ) -> Self {
        let verdict = functions.iter().map(|function| function.verdict).fold(machine.verdict, Ord::max);
        let (log, log_unreadable) = match log {
            Ok(symptoms) => (symptoms, None),
            Err(why) => (Vec::new(), Some(printable(&why))),
        };
        Self { version: 1, view, verdict, machine, functions, log, log_unreadable }
    }
}

impl Verdict {
    /// The program's exit code: 1 and 2 are those of a doctor who could not work and of a wrong command line.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Works => 0,
            Self::Remedy => 3,
            Self::Cannot => 4,
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Remedy => "works with a remedy",
            Self::Cannot => "cannot work",
        }
    }
}

impl Subject {
    /// Whose verdict is the worst of its findings and of `floor`.
    pub fn new(name: &str, title: &str, facts: Facts, findings: Vec<Finding>, floor: Verdict) -> Self {
        let verdict = findings.iter().map(|finding| finding.weight).fold(floor, Ord::max);
        Self { name: printable(name), title: printable(title), verdict, facts, findings }
    }
}

impl Facts {
    /// Adds a fact that a machine reads as the same text.
    pub fn say(&mut self, mark: Mark, name: &'static str, text: impl AsRef<str>) {
        let text = printable(text.as_ref());
        self.0.push(Fact { name, value: Value::String(text.clone()), text, mark });
    }

    /// Adds a fact that a machine reads as `value`.
    pub fn add(&mut self, mark: Mark, name: &'static str, text: impl AsRef<str>, value: Value) {
        self.0.push(Fact { name, text: printable(text.as_ref()), value: clean(value), mark });
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Fact> {
        self.0.iter()
    }
}

impl Serialize for Facts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|fact| (fact.name, &fact.value)))
    }
}

impl Finding {
    /// Something to know.
    pub fn remark(text: impl AsRef<str>) -> Self {
        Self { weight: Verdict::Works, text: printable(text.as_ref()), command: None }
    }

    /// Something to do.
    pub fn remedy(text: impl AsRef<str>, command: impl AsRef<str>) -> Self {
        let command = Some(printable(command.as_ref()));
        Self { weight: Verdict::Remedy, text: printable(text.as_ref()), command }
    }

    /// Something that ends all hope.
    pub fn obstacle(text: impl AsRef<str>) -> Self {
        Self { weight: Verdict::Cannot, text: printable(text.as_ref()), command: None }
    }
}

fn clean(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(printable(&text)),
        Value::Array(values) => Value::Array(values.into_iter().map(clean).collect()),
        Value::Object(members) => {
            let members = members.into_iter().map(|(name, value)| (printable(&name), clean(value)));
            Value::Object(members.collect::<Map<_, _>>())
        }
        value => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_for_machines_are_clean_too() {
        let mut facts = Facts::default();
        facts.add(Mark::Neutral, "holders", "x\x1b", serde_json::json!([{ "name\x1b": "qemu\x1b[0m" }]));
        assert_eq!(
            serde_json::to_string(&facts).unwrap(),
            r#"{"holders":[{"name\\u{1b}":"qemu\\u{1b}[0m"}]}"#
        );
    }

    #[test]
    fn the_worst_finding_is_the_verdict() {
        let subject = |findings| Subject::new("f", "", Facts::default(), findings, Verdict::Works);
        assert_eq!(subject(vec![Finding::remark("so")]).verdict, Verdict::Works);
        let both = vec![Finding::obstacle("no"), Finding::remedy("do", "it")];
        assert_eq!(subject(both).verdict, Verdict::Cannot);
        let report = Report::new(
            "host",
            subject(vec![]),
            vec![subject(vec![Finding::remedy("do", "it")]), subject(vec![])],
            Ok(vec![]),
        );
        assert_eq!((report.verdict, report.verdict.exit_code()), (Verdict::Remedy, 3));
    }
}
