// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs outside of the emulated machines, kept from outliving us or leaving anything mounted.

use crate::error::{At, Error, Result};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a program in the tree needs to know of this machine's way to the network.
const PASSED: &[&str] = &["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];

/// Prefixes of further variables that are passed: cargo's settings of registries and network.
const PASSED_PREFIXES: &[&str] = &["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_SOURCE_"];

/// The CA bundle inside of the tree.
pub(crate) const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A program that the kernel kills when the thread that started it ends, however that ends.
pub(crate) fn bound(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]).stdin(Stdio::null());
    command
}

/// As [`bound`], for all descendants of the program as well, and with a mount namespace of its own: what it mounts is gone
/// with it. If `proc` is given, that directory shows the program's own processes.
pub(crate) fn enclosed(program: &str, proc: Option<&Path>) -> Command {
    let mut command = bound("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child=KILL"]);
    if let Some(proc) = proc {
        let mut argument = std::ffi::OsString::from("--mount-proc=");
        argument.push(proc);
        command.arg(argument);
    }
    command.arg(program);
    command
}

/// A program of the Debian tree, run in the tree.
pub(crate) fn in_tree(tree: &Path, program: &str) -> Command {
    let mut command = enclosed("chroot", Some(&tree.join("proc")));
    command.arg(tree).arg(program).env_clear();
    for (name, value) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if PASSED.contains(&&*text) || PASSED_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) {
            command.env(name, value);
        }
    }
    command
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LC_ALL", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("SSL_CERT_FILE", CA_BUNDLE)
        .env("CARGO_HTTP_CAINFO", CA_BUNDLE);
    command
}

/// Runs a program to its end, its output appended to `log`.
pub(crate) fn run(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    let file = append(log)?;
    let begin = file.metadata().at(log)?.len();
    writeln!(&file, "--- {what}: {command:?}").at(log)?;
    command.stdout(file.try_clone().at(log)?).stderr(file);
    let status = command.status().at(Path::new(command.get_program()))?;
    if status.success() {
        return Ok(());
    }
    let output = fs::read(log).at(log)?;
    let begin = usize::try_from(begin).unwrap_or(0);
    Err(failed(what, &status.to_string(), output.get(begin..).unwrap_or_default(), log))
}

/// Runs a program to its end and returns its standard output.
pub(crate) fn output(what: &str, command: &mut Command, log: &Path) -> Result<Vec<u8>> {
    let output = command.stderr(Stdio::piped()).output().at(Path::new(command.get_program()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let mut file = append(log)?;
    // Not every program complains on standard error.
    let said = [output.stdout, output.stderr].concat();
    writeln!(file, "--- {what}: {command:?}").and_then(|()| file.write_all(&said)).at(log)?;
    Err(failed(what, &output.status.to_string(), &said, log))
}

fn append(log: &Path) -> Result<File> {
    if let Some(directory) = log.parent() {
        fs::create_dir_all(directory).at(directory)?;
    }
    OpenOptions::new().create(true).append(true).open(log).at(log)
}

fn failed(what: &str, how: &str, output: &[u8], log: &Path) -> Error {
    const LINES: usize = 15;
    let text = String::from_utf8_lossy(output);
    let lines: Vec<_> = text.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
    let tail = tail.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n");
    Error::Program { what: what.to_owned(), how: how.to_owned(), tail, log: log.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_program_shows_its_own_last_words() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("sub/log");
        run("speak", Command::new("sh").args(["-c", "echo before"]), &log).unwrap();
        let error =
            run("fail", Command::new("sh").args(["-c", "echo why; exit 3"]), &log).unwrap_err().to_string();
        assert!(error.contains("why") && error.contains("exit status: 3"), "{error}");
        assert!(!error.contains("before"), "{error}");
    }

    #[test]
    fn output_is_returned_unchanged() {
        let directory = tempfile::tempdir().unwrap();
        let out =
            output("print", Command::new("printf").arg("a\\000b"), &directory.path().join("log")).unwrap();
        assert_eq!(out, b"a\0b");
    }
}
