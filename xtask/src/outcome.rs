// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a part of the whole check ends, and the programs that it runs.

use std::path::{Path, PathBuf};
use std::process::Command;

/// How it ended.
pub(crate) enum Outcome {
    Passed,
    Failed(String),
    /// It could not run here: what is missing, and what that leaves untested.
    NotRun(String),
}

impl Outcome {
    /// What becomes of a program.
    pub(crate) fn of(command: &mut Command) -> Self {
        match command.status() {
            Ok(status) if status.success() => Self::Passed,
            Ok(status) => Self::Failed(format!("{command:?}: {status}")),
            Err(error) => Self::Failed(format!("{command:?}: {error}")),
        }
    }

    /// Goes on with `next` if this passed.
    pub(crate) fn and(self, next: impl FnOnce() -> Self) -> Self {
        if matches!(self, Self::Passed) { next() } else { self }
    }
}

/// cargo, in the workspace.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// A program that cargo installs, under target/tools.
pub(crate) struct Tool(pub(crate) &'static str);

impl Tool {
    /// Goes on with it in the workspace, once it is installed.
    pub(crate) fn run(&self, root: &Path, next: impl FnOnce(Command) -> Outcome) -> Outcome {
        let Self(name) = self;
        let tools: PathBuf = root.join("target/tools");
        let installed = tools.join("bin").join(name);
        let there = if installed.exists() {
            Outcome::Passed
        } else {
            println!("installing {name} under target/tools (2 to 3 minutes, once)");
            Outcome::of(cargo(root).args(["install", name, "--locked", "--quiet", "--root"]).arg(&tools))
        };
        there.and(|| {
            let mut command = Command::new(installed);
            command.current_dir(root);
            next(command)
        })
    }
}
