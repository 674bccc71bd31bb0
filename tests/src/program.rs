// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The workspace's programs, built on demand.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// How a program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// As the tests are.
    Debug,
    /// As it is used, and measured.
    Release,
}

/// Path of a program of the workspace. Cargo tells a test only about programs of its own package, so this asks cargo to
/// build it, once for each process; that costs a fraction of a second where nothing has changed.
///
/// # Panics
/// It does not build.
pub fn build(package: &str, program: &str, profile: Profile) -> PathBuf {
    static BUILT: Mutex<Option<HashMap<(String, Profile), PathBuf>>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let built = built.get_or_insert_default();
    if let Some(path) = built.get(&(program.to_owned(), profile)) {
        return path.clone();
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--message-format=json", "--package", package, "--bin", program])
        .args((profile == Profile::Release).then_some("--release"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command.output().expect("cargo can be started");
    assert!(output.status.success(), "{program} does not build");
    let path = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == program)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo says where it put the program");
    built.insert((program.to_owned(), profile), path.clone());
    path
}
