// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask dist`: what packagers install: man pages and completions from the command line's own description, units,
//! examples, the module's source, and a Debian package of it all.

use crate::outcome::{Outcome, Tool};
use clap::CommandFactory;
use clap_complete::Shell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use vhost_device_irq::cli::Cli;
use virtio_irq_lab::module_source;

/// Where everything goes, below the workspace's root.
const DIST: &str = "target/dist";

/// What is kept in the repository for packages.
const KEPT: &str = "host-backend/dist";

/// Writes everything but the Debian package, and goes on with `next`.
pub(crate) fn run(root: &Path, next: fn(&Path) -> Outcome) -> ExitCode {
    match written(root, next) {
        Outcome::Passed => ExitCode::SUCCESS,
        Outcome::Failed(why) | Outcome::NotRun(why) => {
            eprintln!("cargo xtask dist: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The Debian package, and everything that is in it.
pub(crate) fn package(root: &Path) -> Outcome {
    written(root, debian_package)
}

/// Goes on once everything is written. What could not be checked here is said, and no hindrance.
fn written(root: &Path, next: impl FnOnce(&Path) -> Outcome) -> Outcome {
    match check(root) {
        failed @ Outcome::Failed(_) => return failed,
        Outcome::NotRun(missing) => eprintln!("cargo xtask dist: {missing}"),
        Outcome::Passed => {}
    }
    next(root)
}

/// Everything that is for packages, written and checked by the programs that will read it; a stage of `cargo xtask test`.
pub(crate) fn check(root: &Path) -> Outcome {
    if let Err(error) = write(root) {
        return Outcome::Failed(format!("cannot write to {DIST}: {error}"));
    }
    let mut missing = Vec::new();
    for check in [man_pages, completions, libvirt_domain, units] {
        match check(root) {
            Outcome::Passed => {}
            Outcome::NotRun(what) => missing.push(what),
            failed @ Outcome::Failed(_) => return failed,
        }
    }
    if missing.is_empty() { Outcome::Passed } else { Outcome::NotRun(missing.join("; ")) }
}

fn write(root: &Path) -> io::Result<()> {
    let dist = root.join(DIST);
    if dist.exists() {
        fs::remove_dir_all(&dist)?;
    }
    let (man, completions) = (dist.join("man"), dist.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(Cli::command(), &man)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "vhost-device-irq", &completions)?;
    }
    module_source(root, &dist.join("module"), &dist.join("module.log")).map_err(io::Error::other)?;
    println!("man pages, completions and the module's source are in {DIST}");
    Ok(())
}

/// The Debian package, of what is written already.
pub(crate) fn debian_package(root: &Path) -> Outcome {
    Tool("cargo-deb").run(root, |mut deb| {
        // It warns of files that two patterns name, of which the first decides on the mode.
        deb.args(["--package", "vhost-device-irq", "--locked", "--quiet", "--output"]).arg(root.join(DIST));
        Outcome::of(&mut deb)
    })
}

/// mandoc is stricter than man.
fn man_pages(root: &Path) -> Outcome {
    let mut lint = Command::new("mandoc");
    lint.args(["-T", "lint", "-W", "error"]).args(files(&root.join(DIST).join("man")));
    finish(lint)
}

/// Each shell reads its own.
fn completions(root: &Path) -> Outcome {
    let mut bash = Command::new("bash");
    bash.arg("-n").arg(root.join(DIST).join("completions/vhost-device-irq.bash"));
    finish(bash)
}

fn libvirt_domain(root: &Path) -> Outcome {
    let mut validate = Command::new("virt-xml-validate");
    validate.arg(root.join(KEPT).join("libvirt-domain.xml"));
    finish(validate)
}

/// systemd reads the units as an instance, whose program is one that is there.
fn units(root: &Path) -> Outcome {
    let instance = || -> io::Result<Vec<PathBuf>> {
        let directory = root.join(DIST).join("units");
        fs::create_dir_all(&directory)?;
        let mut units = Vec::new();
        for kind in ["service", "socket"] {
            let unit = fs::read_to_string(root.join(KEPT).join(format!("vhost-device-irq@.{kind}")))?;
            for name in [format!("vhost-device-irq@.{kind}"), format!("vhost-device-irq@vm.{kind}")] {
                fs::write(directory.join(&name), unit.replace("/usr/bin/vhost-device-irq", "/bin/true"))?;
            }
            units.push(directory.join(format!("vhost-device-irq@vm.{kind}")));
        }
        Ok(units)
    };
    let units = match instance() {
        Ok(units) => units,
        Err(error) => return Outcome::Failed(format!("cannot lay out the units: {error}")),
    };
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).args(&units);
    // Its exit code does not tell of settings that it ignores.
    match verify.output() {
        Ok(output) if output.status.success() && output.stderr.is_empty() => Outcome::Passed,
        Ok(output) => Outcome::Failed(format!("{verify:?}: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => missing(&verify, &error),
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn finish(mut command: Command) -> Outcome {
    match command.status() {
        Ok(status) if status.success() => Outcome::Passed,
        Ok(status) => Outcome::Failed(format!("{command:?}: {status}")),
        Err(error) => missing(&command, &error),
    }
}

fn missing(command: &Command, error: &io::Error) -> Outcome {
    let program = command.get_program().to_string_lossy();
    if error.kind() == io::ErrorKind::NotFound {
        let untested = match &*program {
            "mandoc" => "the man pages (apt install mandoc)",
            "virt-xml-validate" => "the libvirt domain (apt install libvirt-clients libxml2-utils)",
            "systemd-analyze" => "the units (systemd)",
            _ => "a file for packages",
        };
        return Outcome::NotRun(format!("there is no {program}; untested: {untested}"));
    }
    Outcome::Failed(format!("{program}: {error}"))
}
