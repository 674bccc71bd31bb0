// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The page that says how each requirement is checked says what is true.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use virtio_irq_conform::checked_ids;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const TEXT: &str = include_str!("../../../spec/virtio-irq.md");
const PAGE: &str = include_str!("../../../spec/coverage.md");
const VECTORS: &str = include_str!("../../../spec/vectors.json");

/// Whether what a row names is there.
struct Evidence {
    vectors: BTreeSet<String>,
    tests: BTreeSet<String>,
    /// By the name of the scenario, the names of its checks, quoted.
    scenarios: BTreeMap<String, String>,
}

impl Evidence {
    fn read() -> Self {
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();
        let names = vectors["vectors"].as_array().unwrap().iter();
        let mut found = Self {
            vectors: names.map(|vector| vector["name"].as_str().unwrap().to_owned()).collect(),
            tests: BTreeSet::new(),
            scenarios: BTreeMap::new(),
        };
        found.search(Path::new(ROOT));
        assert!(found.tests.len() > 300 && !found.scenarios.is_empty(), "the sources were not found");
        found
    }

    fn search(&mut self, directory: &Path) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                self.search(&path);
            } else if name.ends_with(".rs") {
                let source = fs::read_to_string(&path).unwrap();
                self.tests.extend(tests(&source).map(str::to_owned));
                if path.parent().is_some_and(|parent| parent.ends_with("lab/src/scenarios")) {
                    // Those of one file, on machines of several kinds, have their checks in common.
                    let checks: String = parts(&source, "checks: &[", ']').collect();
                    let names = parts(&source, "Scenario = Scenario {\n    name: \"", '"');
                    self.scenarios.extend(names.map(|name| (name.to_owned(), checks.clone())));
                }
            }
        }
    }

    fn has(&self, evidence: &str) -> bool {
        match evidence.split_once(':') {
            Some(("vector", name)) => self.vectors.contains(name),
            Some(("lab", check)) => check.split_once('/').is_some_and(|(scenario, check)| {
                self.scenarios.get(scenario).is_some_and(|checks| checks.contains(&format!("\"{check}\"")))
            }),
            _ => self.tests.contains(evidence),
        }
    }
}

/// What stands between each `begin` and the next `end`.
fn parts<'a>(source: &'a str, begin: &'a str, end: char) -> impl Iterator<Item = &'a str> {
    source.split(begin).skip(1).filter_map(move |rest| rest.split(end).next())
}

/// Names of the tests of a source file, in `proptest!` as well.
fn tests(source: &str) -> impl Iterator<Item = &str> {
    source.split("#[test]").skip(1).filter_map(|rest| {
        let (_, name) = rest.split_once("fn ")?;
        name.split(['(', '<']).next()
    })
}

/// Requirement, and what its row says.
fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    PAGE.lines().filter_map(|line| {
        let (id, rest) = line.strip_prefix("| [")?.split_once("](virtio-irq.md#")?;
        let (anchor, shown) = rest.strip_suffix(" |")?.split_once(") | ")?;
        assert_eq!(anchor, id.to_lowercase());
        Some((id, shown))
    })
}

#[test]
fn every_requirement_has_one_row_and_there_are_no_others() {
    let mut defined: Vec<_> = TEXT
        .lines()
        .filter_map(|line| line.strip_prefix("- <a id=\"irq-")?.split_once("**")?.1.split_once("**"))
        .map(|(id, _)| id)
        .collect();
    defined.sort_unstable();
    let mut listed: Vec<_> = rows().map(|(id, _)| id).collect();
    assert!(listed.len() > 100);
    listed.sort_unstable();
    assert_eq!(listed, defined);
}

#[test]
fn what_the_rows_name_exists_and_the_checker_is_named_where_it_checks() {
    let known = Evidence::read();
    let checked: BTreeSet<_> = checked_ids().collect();
    for (id, shown) in rows() {
        let named: Vec<_> = shown.split('`').skip(1).step_by(2).collect();
        let excused = ["*not observable*: ", "*untested*: "].iter().any(|excuse| shown.contains(excuse));
        assert_eq!(excused, named.is_empty(), "{id}: {shown}");
        assert_eq!(named.contains(&"conform"), checked.contains(id), "{id} and the checker");
        for evidence in named.into_iter().filter(|evidence| *evidence != "conform") {
            assert!(known.has(evidence), "{id}: there is no {evidence}");
        }
    }
}
