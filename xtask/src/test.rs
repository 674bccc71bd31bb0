// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask test`: everything that a change must pass, in the order in which it is quickest to fail.

use crate::outcome::{Outcome, Tool, cargo};
use crate::{dist, lab, package};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

struct Stage {
    name: &'static str,
    what: &'static str,
    run: fn(&Path) -> Outcome,
}

const STAGES: &[Stage] = &[
    Stage { name: "format", what: "cargo fmt", run: format },
    Stage { name: "lints", what: "clippy, warnings are errors", run: lints },
    Stage { name: "licenses", what: "cargo deny: licenses, bans and sources", run: licenses },
    Stage { name: "docs", what: "rustdoc, warnings are errors", run: docs },
    Stage { name: "tests", what: "unit and integration tests", run: tests },
    Stage {
        name: "dist",
        what: "man pages, completions, units and the libvirt domain, by their readers",
        run: dist::check,
    },
    Stage { name: "demo", what: "the simulated demonstration", run: demo },
    Stage {
        name: "package",
        what: "the Debian package, installed and started by systemd",
        run: package::check,
    },
    Stage { name: "lab", what: "all scenarios on emulated machines", run: lab::test_all },
];

/// Runs every stage, also after one has failed: one run shows all that is wrong.
pub(crate) fn run(root: &Path) -> ExitCode {
    let strict = std::env::var_os("CI").is_some();
    let mut results = Vec::new();
    for (index, stage) in STAGES.iter().enumerate() {
        println!("\n=== {}/{} {}: {}", index + 1, STAGES.len(), stage.name, stage.what);
        let start = Instant::now();
        let outcome = (stage.run)(root);
        if let Outcome::Failed(why) = &outcome {
            eprintln!("=== {} FAILED: {why}", stage.name);
        }
        results.push((stage.name, outcome, start.elapsed()));
    }
    summarize(&results, strict)
}

fn summarize(results: &[(&str, Outcome, Duration)], strict: bool) -> ExitCode {
    println!("\n=== summary");
    let (mut passed, mut failed, mut not_run) = (0, 0, 0);
    for (name, outcome, time) in results {
        let seconds = time.as_secs();
        match outcome {
            Outcome::Passed => {
                passed += 1;
                println!("  passed   {name:<8} {seconds:>5} s");
            }
            Outcome::Failed(why) => {
                failed += 1;
                println!("  FAILED   {name:<8} {seconds:>5} s  {why}");
            }
            Outcome::NotRun(why) => {
                not_run += 1;
                println!("  NOT RUN  {name:<8} {seconds:>5} s  {why}");
            }
        }
    }
    if strict && not_run > 0 {
        println!("  CI is set: a stage that cannot run counts as failed");
        failed += std::mem::take(&mut not_run);
    }
    println!("\n{passed} passed, {failed} failed, {not_run} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The kernel object's crate has a workspace of its own, because it is built for another target.
const KERNEL_CRATE: &str = "guest-driver/linux/rust/Cargo.toml";

fn format(root: &Path) -> Outcome {
    Outcome::of(cargo(root).args(["fmt", "--all", "--check"]))
        .and(|| Outcome::of(cargo(root).args(["fmt", "--manifest-path", KERNEL_CRATE, "--check"])))
}

fn lints(root: &Path) -> Outcome {
    let workspace = ["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"];
    Outcome::of(cargo(root).args(workspace))
        .and(|| kernel_crate(root, "clippy", &["--all-targets", "--", "--deny", "warnings"]))
}

/// Advisories are left out: their database is a repository that has to be fetched.
fn licenses(root: &Path) -> Outcome {
    Tool("cargo-deny").run(root, |mut deny| Outcome::of(deny.args(["check", "licenses", "bans", "sources"])))
}

fn docs(root: &Path) -> Outcome {
    let mut doc = cargo(root);
    doc.args(["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "--deny warnings");
    Outcome::of(&mut doc)
}

fn tests(root: &Path) -> Outcome {
    Outcome::of(cargo(root).args(["test", "--workspace", "--locked"])).and(|| kernel_crate(root, "test", &[]))
}

fn demo(_: &Path) -> Outcome {
    match std::env::current_exe() {
        Ok(this) => Outcome::of(Command::new(this).args(["demo", "--simulated"])),
        Err(error) => Outcome::Failed(format!("cannot find this program: {error}")),
    }
}

fn kernel_crate(root: &Path, task: &str, arguments: &[&str]) -> Outcome {
    let mut command = cargo(root);
    command.args([task, "--locked", "--manifest-path", KERNEL_CRATE]);
    // The workspace's target directory, or else the crate would make one of its own beside its source.
    command.arg("--target-dir").arg(root.join("target/kernel-crate")).args(arguments);
    Outcome::of(&mut command)
}

#[cfg(test)]
mod tests {
    const WORKSPACE: &str = include_str!("../../Cargo.toml");
    const KERNEL_CRATE: &str = include_str!("../../guest-driver/linux/rust/Cargo.toml");

    fn table<'a>(manifest: &'a str, name: &str) -> Vec<&'a str> {
        let header = format!("[{name}]");
        let lines = manifest.lines().skip_while(|line| *line != header).skip(1);
        lines.take_while(|line| !line.is_empty()).collect()
    }

    #[test]
    fn the_kernel_crate_has_the_lints_of_the_workspace() {
        for (lints, inherited) in
            [("lints.rust", "workspace.lints.rust"), ("lints.clippy", "workspace.lints.clippy")]
        {
            let theirs = table(WORKSPACE, inherited);
            assert!(theirs.len() > 2, "{inherited}: {theirs:?}");
            assert_eq!(table(KERNEL_CRATE, lints), theirs, "{lints}");
        }
    }
}
