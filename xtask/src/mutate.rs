// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask mutate`: whether the tests would notice.
//!
//! A mutation is one mistake that somebody could make in a core. It is made in a copy of the tree, and the tests that
//! join both cores have to fail.

use crate::table;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Where the copy lies, below the workspace's root.
const COPY: &str = "target/mutate";

/// Mistakes in one file.
struct Group {
    file: &'static str,
    /// The tests that have to notice each, as a filter.
    tests: &'static str,
    mistakes: &'static [Mistake],
}

/// What goes wrong; what is there, once; and what stands there instead.
type Mistake = (&'static str, &'static str, &'static str);

const GROUPS: &[Group] = &[
    Group {
        file: "host-backend/src/device/sources/mod.rs",
        tests: "source_cores",
        mistakes: &[
            (
                "a freed source stays in the queue of those that fired",
                "self.ready.retain(|id| slot_of(slots, *id).is_some());",
                "",
            ),
            ("the last source leaves its type enabled on the host", "entry.last = true;", ""),
            (
                "a revoked source keeps what is pending",
                "slot.pending = false;\n                slot.late",
                "slot.late",
            ),
            ("half of a range is enough", "ids.clone().all(|id|", "ids.clone().any(|id|"),
            ("a function has no quota", "self.quota.function.saturating_sub(held)", "self.quota.function"),
        ],
    },
    Group {
        file: "host-backend/src/device/sources/mod.rs",
        tests: "hostile_host",
        mistakes: &[
            ("a source is told of before its ALLOCATE is answered", "given: false,", "given: true,"),
            (
                "a loss is told before the host has its own back",
                "if self.lost.is_empty() && self.releasing == 0 {",
                "if self.lost.is_empty() {",
            ),
        ],
    },
    Group {
        file: "host-backend/src/device/sources/pending.rs",
        tests: "source_cores",
        mistakes: &[
            (
                "MASK forgets what is pending",
                "slot.masked = true;",
                "slot.masked = true; slot.pending = false;",
            ),
            (
                "UNMASK forgets what fired meanwhile",
                "if slot.pending {\n                    if slot.is_ready() {",
                "if slot.pending {\n                    if !slot.is_ready() {",
            ),
            ("a source that is pending fires twice", "        if !slot.pending {\n", "        {\n"),
            (
                "an event leaves its source pending",
                "slot.pending = false;\n                slot.masked =",
                "slot.masked =",
            ),
            ("a pin does not mask itself", "slot.masked = slot.irq_type == IrqType::Intx;", ""),
            (
                "interrupts are told before revocations",
                "lost.chain(fired).take(room)",
                "fired.chain(lost).take(room)",
            ),
            ("a revocation is told again and again", "self.revoked.drain(..lost);", ""),
            (
                "the source that fired last comes first",
                "            if slot.is_ready() {\n                self.ready.push_back(id);\n            }\n        }\n        Watch::On",
                "            if slot.is_ready() {\n                self.ready.push_front(id);\n            }\n        }\n        Watch::On",
            ),
        ],
    },
    Group {
        file: "host-backend/src/device/allocate.rs",
        tests: "source_cores",
        mistakes: &[
            (
                "sources that form no block stay allocated",
                "return self.roll_back(&request, vectors, Status::NotContiguous);",
                "return Step::Done(Reply::status(Status::NotContiguous));",
            ),
            (
                "an allocation that the host refuses keeps its ids",
                "let status = self.refused_allocation(request.function, failure);\n                return self.roll_back(&request, vectors, status);",
                "let status = self.refused_allocation(request.function, failure);\n                return Step::Done(Reply::status(status));",
            ),
        ],
    },
    Group {
        file: "host-backend/src/device/mod.rs",
        tests: "source_cores",
        mistakes: &[(
            "a function that is gone keeps its sources",
            "self.sources.drop_function(function);",
            "",
        )],
    },
    Group {
        file: "host-backend/src/device/mod.rs",
        tests: "cores",
        mistakes: &[("a reset keeps events", "self.events.clear();", "")],
    },
    Group {
        file: "host-backend/src/device/function.rs",
        tests: "cores",
        mistakes: &[("a message that moved keeps its generation", "generation: fresh }", "generation: 1 }")],
    },
    Group {
        file: "guest-driver/core/src/sources.rs",
        tests: "source_cores",
        mistakes: &[(
            "the driver takes a record of a former source for one of its successor",
            "pub fn must_drain(&self) -> bool {\n        self.stale",
            "pub fn must_drain(&self) -> bool {\n        false",
        )],
    },
    Group {
        file: "host-backend/src/device/allocate.rs",
        tests: "hostile_host",
        mistakes: &[(
            "a block is given where there is no room for any",
            "if run.len() == most {",
            "if run.len() == most && most > 0 {",
        )],
    },
    Group {
        file: "host-backend/src/vhost_user/chain.rs",
        tests: "hostile_guest",
        mistakes: &[(
            "a chain is given back twice",
            "Ok(state.get_queue_mut().add_used(memory, self.head, used)?)",
            "state.get_queue_mut().add_used(memory, self.head, used)?;\n        \
             Ok(state.get_queue_mut().add_used(memory, self.head, used)?)",
        )],
    },
];

/// What became of a mutation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Noticed,
    Missed,
    /// The mutation is not one any more.
    Stale(&'static str),
}

pub(crate) fn run(root: &Path, only: &str) -> ExitCode {
    match try_all(root, only) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo xtask mutate: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Tries every mutation whose name has `only` in it, and returns whether the tests noticed each.
fn try_all(root: &Path, only: &str) -> io::Result<bool> {
    let copy = root.join(COPY);
    copy_tree(root, &copy)?;
    let mut table = table::new(&["mutation", "tests", "outcome"]);
    let mut all = true;
    let mistakes = GROUPS.iter().flat_map(|group| group.mistakes.iter().map(move |mistake| (group, mistake)));
    for (group, mistake) in mistakes.filter(|(_, (name, ..))| name.contains(only)) {
        let outcome = attempt(root, &copy, group, mistake)?;
        all &= outcome == Outcome::Noticed;
        let outcome = match outcome {
            Outcome::Noticed => "noticed",
            Outcome::Missed => "MISSED",
            Outcome::Stale(why) => why,
        };
        println!("{}: {outcome}", mistake.0);
        table.add_row([mistake.0, group.tests, outcome]);
    }
    println!("{table}");
    Ok(all)
}

fn attempt(root: &Path, copy: &Path, group: &Group, (_, from, to): &Mistake) -> io::Result<Outcome> {
    let path = copy.join(group.file);
    let before = fs::read_to_string(&path)?;
    if before.matches(from).count() != 1 {
        return Ok(Outcome::Stale("STALE: what it changes is not there once"));
    }
    fs::write(&path, before.replace(from, to))?;
    let test = |arguments: &[&str]| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["test", "--quiet", "--locked", "-p", "virtio-irq-tests", "--test", "it"]).args(arguments);
        // What does not change is not built again.
        cargo.current_dir(copy).env("CARGO_TARGET_DIR", root.join("target"));
        // A mistake that shows only now and then is noticed more surely.
        cargo.env("PROPTEST_CASES", "2000");
        cargo.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
    };
    let outcome = match test(&["--no-run"])?.success() {
        false => Outcome::Stale("STALE: it does not build"),
        true if test(&[group.tests])?.success() => Outcome::Missed,
        true => Outcome::Noticed,
    };
    fs::write(&path, before)?;
    Ok(outcome)
}

/// Copies what git knows of; a file keeps its time unless it changed, so that cargo builds what did.
fn copy_tree(root: &Path, copy: &Path) -> io::Result<()> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output()?;
    if !listed.status.success() {
        return Err(io::Error::other("git cannot list the files of the tree"));
    }
    let mut kept = BTreeSet::new();
    for file in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|file| !file.is_empty()) {
        let (from, to) = (root.join(file), copy.join(file));
        let Ok(content) = fs::read(&from) else { continue };
        kept.insert(to.clone());
        if fs::read(&to).is_ok_and(|there| there == content) {
            continue;
        }
        if let Some(directory) = to.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(to, content)?;
    }
    remove_others(copy, &kept)
}

/// Removes what the tree had at another time: a module that moved would be there twice.
fn remove_others(directory: &Path, kept: &BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, kept)?;
        } else if !kept.contains(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Trying them all takes half an hour; that each is still one is seen at once.
    #[test]
    fn every_mistake_changes_what_is_there_once() {
        let root = crate::workspace();
        for Group { file, mistakes, .. } in GROUPS {
            let source = fs::read_to_string(root.join(file)).unwrap();
            for (name, from, _) in *mistakes {
                assert_eq!(source.matches(from).count(), 1, "{name}, in {file}");
            }
        }
    }
}
