// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Workspace tasks: demo, test, lab, bench, mutate, spec and dist.

#![forbid(unsafe_code)]

mod bench;
mod demo;
mod dist;
mod lab;
mod mutate;
mod outcome;
mod package;
mod simulated;
mod spec;
mod table;
mod test;

use crate::outcome::Outcome;
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Workspace tasks of virtio-irq")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show the main job: a guest gets the real MSI pair of a function that is assigned to it
    ///
    /// On emulated machines with real kernels, VFIO, an IOMMU and KVM. The first time it prepares them, which needs root,
    /// downloads and up to 10 minutes; after that it takes less than one.
    Demo {
        /// A simulated function instead: in seconds, on any Linux, without root, downloads or QEMU
        #[arg(long)]
        simulated: bool,
    },
    /// Run scenarios on emulated machines
    ///
    /// The first time it prepares them, as `demo` does.
    Lab(lab::Options),
    /// Run everything that a change must pass, as CI does
    ///
    /// Format, lints, licenses, documentation, tests, what is packaged, and all scenarios of the lab; goes on after what fails.
    /// What cannot run here is named, with what it needs.
    Test,
    /// Measure what the device costs: round trips, interrupts, storms, allocation, reads of the host, an idle guest
    ///
    /// Takes about a minute. Writes target/bench/results.json and docs/bench.md.
    Bench,
    /// Build the specification with its diagrams drawn: target/spec/virtio-irq.html and .pdf
    ///
    /// Needs pandoc, chromium and npm.
    Spec,
    /// Make mistakes in a copy of the cores, and say whether the tests that join them notice
    ///
    /// Builds and runs them once for each, which takes half an hour on two cores.
    Mutate {
        /// Only mistakes with this in their names; all without it
        #[arg(default_value = "", hide_default_value = true)]
        only: String,
    },
    /// Write what packagers install to target/dist: man pages, completions, the module's source, a Debian package
    Dist {
        /// Leave the Debian package out, which wants a release build
        #[arg(long)]
        no_package: bool,
        /// Install the Debian package in the lab's Debian and let systemd start it, which needs root
        #[arg(long, conflicts_with = "no_package")]
        install: bool,
    },
}

fn main() -> ExitCode {
    let root = workspace();
    match Cli::parse().task {
        Task::Demo { simulated: false } => demo::run(&root),
        Task::Demo { simulated: true } => simulated::run(),
        Task::Lab(options) => lab::run(&root, &options),
        Task::Test => test::run(&root),
        Task::Bench => bench::run(&root),
        Task::Mutate { only } => mutate::run(&root, &only),
        Task::Spec => spec::run(&root),
        Task::Dist { install: true, .. } => dist::run(&root, package::check),
        Task::Dist { no_package: true, .. } => dist::run(&root, |_| Outcome::Passed),
        Task::Dist { .. } => dist::run(&root, dist::debian_package),
    }
}

/// The workspace's root: where this crate lies, by cargo's word if it runs us.
fn workspace() -> PathBuf {
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest).parent().unwrap_or(Path::new(".")).to_owned()
}
