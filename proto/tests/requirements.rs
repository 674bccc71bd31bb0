// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The specification keeps its own rules: normative words only in requirements, every requirement one sentence with
//! an id of its own, every id in the conformance list, and every id that code refers to is there.
#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const TEXT: &str = include_str!("../../spec/virtio-irq.md");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The line that says what the normative words mean.
const DEFINES_THE_WORDS: &str = "with one of the words MUST, MUST NOT, SHOULD, SHOULD NOT and MAY";

struct Requirement<'a> {
    id: &'a str,
    anchor: &'a str,
    /// First word of the heading that it stands under: Device or Driver.
    block: Option<&'a str>,
    sentence: &'a str,
}

fn requirement(line: &str) -> Option<(&str, &str, &str)> {
    let (anchor, rest) = line.strip_prefix("- <a id=\"")?.split_once("\"></a>**")?;
    let (id, sentence) = rest.split_once("** ")?;
    Some((anchor, id, sentence))
}

fn requirements() -> Vec<Requirement<'static>> {
    let mut found = Vec::new();
    let mut block = None;
    for line in TEXT.lines() {
        if line.starts_with('#') {
            let heading = line.trim_start_matches('#').trim();
            block = heading.split_once(" requirements: ").map(|(side, _)| side);
        } else if let Some((anchor, id, sentence)) = requirement(line) {
            found.push(Requirement { id, anchor, block, sentence });
        }
    }
    assert!(found.len() > 50, "the requirements were not found");
    found
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty())
}

fn is_normative(word: &str) -> bool {
    ["must", "should", "shall", "may"].contains(&word.to_ascii_lowercase().as_str())
}

/// Ids of requirements in any text, also ill-formed ones.
fn ids(text: &str) -> impl Iterator<Item = String> + '_ {
    ["IRQ-DEV-", "IRQ-DRV-"].into_iter().flat_map(move |prefix| {
        text.match_indices(prefix).filter_map(move |(at, _)| {
            let number: String = text[at + prefix.len()..].chars().take_while(char::is_ascii_digit).collect();
            (!number.is_empty()).then(|| format!("{prefix}{number}"))
        })
    })
}

#[test]
fn ids_are_unique_and_stand_in_the_block_of_their_side() {
    let mut seen = BTreeSet::new();
    for Requirement { id, anchor, block, .. } in requirements() {
        assert!(seen.insert(id), "{id} is there twice");
        let side = match (id.split_at_checked(8), id.len()) {
            (Some(("IRQ-DEV-", _)), 10) => "Device",
            (Some(("IRQ-DRV-", _)), 10) => "Driver",
            _ => panic!("{id} is no id"),
        };
        assert_eq!(block, Some(side), "{id}");
        assert_eq!(anchor, id.to_ascii_lowercase());
    }
}

#[test]
fn a_requirement_is_one_sentence_with_one_normative_word() {
    for Requirement { id, sentence, .. } in requirements() {
        let normative: Vec<_> = words(sentence).filter(|word| is_normative(word)).collect();
        assert!(matches!(normative[..], ["MUST" | "SHOULD" | "MAY"]), "{id}: {normative:?}");
        assert!(sentence.ends_with('.') && !sentence.contains(". "), "{id} is not one sentence");
    }
}

#[test]
fn normative_words_stand_in_requirements_only() {
    for line in TEXT.lines().filter(|line| requirement(line).is_none()) {
        if !line.contains(DEFINES_THE_WORDS) {
            assert_eq!(words(line).find(|word| is_normative(word)), None, "{line}");
        }
    }
    assert_eq!(TEXT.matches(DEFINES_THE_WORDS).count(), 1);
}

#[test]
fn the_conformance_lists_name_each_requirement_once() {
    let (_, lists) = TEXT.split_once("\n## Conformance\n").unwrap();
    let (device, driver) = lists.split_once("\n### Driver conformance\n").unwrap();
    for (list, prefix) in [(device, "IRQ-DEV-"), (driver, "IRQ-DRV-")] {
        // Each stands there as the text and as the target of a link, of which the target is in lower case.
        let mut listed: Vec<_> = ids(list).collect();
        listed.sort();
        let mut defined: Vec<_> = requirements().iter().map(|r| r.id.to_owned()).collect();
        defined.retain(|id| id.starts_with(prefix));
        defined.sort();
        assert_eq!(listed, defined);
        for id in &listed {
            assert!(list.contains(&format!("[{id}](#{})", id.to_ascii_lowercase())), "{id} is no link");
        }
    }
}

/// As GitHub makes them.
fn anchor_of(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The documents beside the text, by their names.
fn documents() -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(Path::new(ROOT).join("spec")).unwrap().map(Result::unwrap);
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    named
        .filter(|(name, _)| name.ends_with(".md"))
        .map(|(name, path)| (name, std::fs::read_to_string(path).unwrap()))
        .collect()
}

/// Of headings as GitHub makes them, and of requirements.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let headings = headings.map(|line| anchor_of(line.trim_start_matches('#').trim()));
    headings.chain(text.lines().filter_map(requirement).map(|(anchor, _, _)| anchor.to_owned())).collect()
}

#[test]
fn links_within_the_specification_lead_somewhere() {
    let documents = documents();
    let mut links = 0;
    for (name, text) in &documents {
        for (at, start) in text.match_indices("](") {
            let link = text[at + start.len()..].split(')').next().unwrap();
            if link.starts_with("https://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let file = if file.is_empty() { name } else { file };
            assert!(Path::new(ROOT).join("spec").join(file).exists(), "{name}: there is no file {link}");
            if !anchor.is_empty() {
                assert!(anchors(&documents[file]).contains(anchor), "{name}: nothing is called {link}");
            }
            links += 1;
        }
    }
    assert!(links > 300);
}

#[test]
fn annexes_require_nothing() {
    let documents = documents();
    let mut annexes = documents.iter().filter(|(name, _)| name.starts_with("annex-")).peekable();
    assert!(annexes.peek().is_some());
    for (name, text) in annexes {
        for line in text.lines() {
            assert_eq!(words(line).find(|word| is_normative(word)), None, "{name}: {line}");
        }
    }
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        if entry.file_type().unwrap().is_dir() {
            if name != "target" && !name.starts_with('.') {
                sources(&path, found);
            }
        } else if let Some(extension) = path.extension()
            && ["rs", "c", "h", "md", "sh", "toml", "json"].iter().any(|known| extension == *known)
        {
            found.push(path);
        }
    }
}

#[test]
fn every_id_that_is_referred_to_exists() {
    let defined: BTreeSet<_> = requirements().iter().map(|requirement| requirement.id.to_owned()).collect();
    let mut files = Vec::new();
    sources(Path::new(ROOT), &mut files);
    let mut unknown: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let mut known = 0;
    for file in files {
        // A file that is being replaced, or is not text, refers to nothing.
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        for id in ids(&text) {
            if defined.contains(&id) { known += 1 } else { unknown.entry(id).or_default().push(file.clone()) }
        }
    }
    assert_eq!(unknown, BTreeMap::new());
    assert!(known > 2 * defined.len(), "the sources were not found");
}
