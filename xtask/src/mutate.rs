// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask mutate`: whether the tests would notice.
//!
//! Each mutation is one mistake that somebody could make in a core. It is made in a copy of the tree, and the tests that
//! join both cores have to fail.

use crate::table;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// Where the copy lies, below the workspace's root.
const COPY: &str = "target/mutate";

/// One mistake.
struct Mutation {
    /// What goes wrong.
    name: &'static str,
    file: &'static str,
    /// What is there, once.
    from: &'static str,
    to: &'static str,
    /// The tests that have to notice, as a filter.
    tests: &'static str,
}

const SOURCES: &str = "host-backend/src/device/sources.rs";
const ALLOCATE: &str = "host-backend/src/device/allocate.rs";
const DEVICE: &str = "host-backend/src/device/mod.rs";
const FUNCTION: &str = "host-backend/src/device/function.rs";
const DRIVER: &str = "guest-driver/core/src/sources.rs";

const fn sources(name: &'static str, from: &'static str, to: &'static str) -> Mutation {
    Mutation { name, file: SOURCES, from, to, tests: "source_cores" }
}

const MUTATIONS: [Mutation; 20] = [
    sources(
        "MASK forgets what is pending",
        "slot.masked = true;",
        "slot.masked = true; slot.pending = false;",
    ),
    sources("UNMASK forgets what fired meanwhile", "if !slot.late {", "if slot.late {"),
    sources("a source that is pending fires twice", "        if !slot.pending {\n", "        {\n"),
    sources(
        "an event leaves its source pending",
        "slot.pending = false;\n                slot.masked =",
        "slot.masked =",
    ),
    sources("a pin does not mask itself", "slot.masked = slot.irq_type == IrqType::Intx;", ""),
    sources(
        "a freed source stays in the queue of those that fired",
        "self.ready.retain(|id| slot_of(slots, *id).is_some());",
        "",
    ),
    sources("the last source leaves its type enabled on the host", "entry.last = true;", ""),
    sources(
        "interrupts are told before revocations",
        "lost.chain(fired).take(room)",
        "fired.chain(lost).take(room)",
    ),
    sources("a revocation is told again and again", "self.revoked.drain(..lost);", ""),
    sources(
        "a revoked source keeps what is pending",
        "slot.pending = false;\n                slot.late",
        "slot.late",
    ),
    sources("half of a range is enough", "ids.clone().all(|id|", "ids.clone().any(|id|"),
    sources("a function has no quota", "self.quota.function.saturating_sub(held)", "self.quota.function"),
    sources(
        "the source that fired last comes first",
        "            if !slot.masked {\n                self.ready.push_back(id);\n            }\n        }\n        Watch::On",
        "            if !slot.masked {\n                self.ready.push_front(id);\n            }\n        }\n        Watch::On",
    ),
    Mutation {
        name: "sources that form no block stay allocated",
        file: ALLOCATE,
        from: "return self.roll_back(&request, vectors, Status::NotContiguous);",
        to: "return Step::Done(Reply::status(Status::NotContiguous));",
        tests: "source_cores",
    },
    Mutation {
        name: "an allocation that the host refuses keeps its ids",
        file: ALLOCATE,
        from: "let status = self.refused_allocation(request.function, failure);\n                return self.roll_back(&request, vectors, status);",
        to: "let status = self.refused_allocation(request.function, failure);\n                return Step::Done(Reply::status(status));",
        tests: "source_cores",
    },
    Mutation {
        name: "a function that is gone keeps its sources",
        file: DEVICE,
        from: "self.sources.drop_function(function);",
        to: "",
        tests: "source_cores",
    },
    Mutation {
        name: "a reset keeps events",
        file: DEVICE,
        from: "self.events.clear();",
        to: "",
        tests: "cores",
    },
    Mutation {
        name: "a message that moved keeps its generation",
        file: FUNCTION,
        from: "generation: fresh }",
        to: "generation: 1 }",
        tests: "cores",
    },
    Mutation {
        name: "the driver takes a record of a former source for one of its successor",
        file: DRIVER,
        from: "pub fn must_drain(&self) -> bool {\n        self.stale",
        to: "pub fn must_drain(&self) -> bool {\n        false",
        tests: "source_cores",
    },
    Mutation {
        name: "a chain is given back twice",
        file: "host-backend/src/vhost_user/chain.rs",
        from: "Ok(state.get_queue_mut().add_used(memory, self.head, used)?)",
        to: "state.get_queue_mut().add_used(memory, self.head, used)?;\n        \
             Ok(state.get_queue_mut().add_used(memory, self.head, used)?)",
        tests: "hostile_guest",
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
    for mutation in MUTATIONS.iter().filter(|mutation| mutation.name.contains(only)) {
        let outcome = attempt(root, &copy, mutation)?;
        all &= outcome == Outcome::Noticed;
        let outcome = match outcome {
            Outcome::Noticed => "noticed",
            Outcome::Missed => "MISSED",
            Outcome::Stale(why) => why,
        };
        println!("{}: {outcome}", mutation.name);
        table.add_row([mutation.name, mutation.tests, outcome]);
    }
    println!("{table}");
    Ok(all)
}

fn attempt(root: &Path, copy: &Path, mutation: &Mutation) -> io::Result<Outcome> {
    let path = copy.join(mutation.file);
    let before = fs::read_to_string(&path)?;
    if before.matches(mutation.from).count() != 1 {
        return Ok(Outcome::Stale("STALE: what it changes is not there once"));
    }
    fs::write(&path, before.replace(mutation.from, mutation.to))?;
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
        true if test(&[mutation.tests])?.success() => Outcome::Missed,
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
    for file in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|file| !file.is_empty()) {
        let (from, to) = (root.join(file), copy.join(file));
        let Ok(content) = fs::read(&from) else { continue };
        if fs::read(&to).is_ok_and(|there| there == content) {
            continue;
        }
        if let Some(directory) = to.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(to, content)?;
    }
    Ok(())
}
