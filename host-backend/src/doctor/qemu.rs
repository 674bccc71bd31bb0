// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether there is a QEMU that can have the device.

use super::Tree;
use super::report::{Facts, Finding, Mark};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use serde_json::json;
use std::io::{self, Read};
use std::process::{Child, Command, Stdio};

/// Enterprise Linux keeps its QEMU out of the way.
const PROGRAMS: &[&str] = &["usr/local/bin/qemu-system-", "usr/bin/qemu-system-", "usr/libexec/qemu-kvm"];

/// The first release in which a user may create the generic vhost-user device.
const NEEDED: (u32, u32) = (10, 2);

/// The longest that it may take to print its version. An emulated machine needs seconds.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

pub(super) fn examine(tree: &Tree, facts: &mut Facts, findings: &mut Vec<Finding>) {
    let Some(path) = find(tree) else {
        facts.add(
            Mark::Neutral,
            "QEMU",
            "none found in /usr/bin, /usr/local/bin and /usr/libexec",
            json!(null),
        );
        let text = "QEMU 10.2 or later, or another VMM that can have a generic vhost-user device, is needed to use \
                    the daemon";
        findings.push(Finding::remark(text));
        return;
    };
    let output = tree.output(&path, |program| version_of(Command::new(program)));
    match output.as_deref().ok().and_then(|text| Some((text, parse(text)?))) {
        Some((text, version)) => {
            let enough = version >= NEEDED;
            let number = text.split_whitespace().nth(3).unwrap_or_default();
            let why = if enough { "has a" } else { "has no" };
            facts.add(
                if enough { Mark::Good } else { Mark::Poor },
                "QEMU",
                format!("{number} (/{path}): {why} vhost-user device that a user can create"),
                json!({ "path": format!("/{path}"), "version": number, "new_enough": enough }),
            );
            if !enough {
                findings.push(Finding::remedy(
                    format!(
                        "QEMU {number} is too old: up to 10.1 the generic vhost-user device is called \
                         vhost-user-device-pci and no user can create it; from 10.2 on it is \
                         vhost-user-test-device-pci. Install a newer one, for example from Debian's backports"
                    ),
                    "apt install -t trixie-backports qemu-system-x86",
                ));
            }
        }
        None => {
            let why = output
                .err()
                .map_or_else(|| "it does not tell its version".to_owned(), |error| error.to_string());
            let value = json!({ "path": format!("/{path}"), "version": null });
            facts.add(Mark::Neutral, "QEMU", format!("/{path}, of unknown version: {why}"), value);
        }
    }
}

fn find(tree: &Tree) -> Option<String> {
    let architecture = match tree.sysfs.platform() {
        crate::host::linux::Platform::Arm64 => "aarch64",
        _ => "x86_64",
    };
    PROGRAMS.iter().find_map(|program| {
        let path =
            if program.ends_with('-') { format!("{program}{architecture}") } else { (*program).to_owned() };
        tree.exists(&path).then_some(path)
    })
}

/// Runs `QEMU --version`, which cannot hold up the doctor for ever.
fn version_of(mut program: Command) -> io::Result<String> {
    let mut child =
        program.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let ended = wait(&child);
    if !matches!(ended, Ok(true)) {
        child.kill()?;
    }
    child.wait()?;
    if !ended? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut text = String::new();
    if let Some(output) = child.stdout.take() {
        output.take(4096).read_to_string(&mut text)?;
    }
    Ok(text)
}

fn wait(child: &Child) -> io::Result<bool> {
    let pidfd = pidfd_open(rustix::process::Pid::from_child(child), PidfdFlags::empty())?;
    Ok(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&PATIENCE))? == 1)
}

/// `QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)`.
fn parse(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.strip_prefix("QEMU emulator version ")?.split(|end: char| !end.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn versions_compare_as_numbers() {
        let new_enough = |text| parse(text).map(|version| version >= NEEDED);
        assert_eq!(new_enough("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)"), Some(true));
        assert_eq!(new_enough("QEMU emulator version 10.2.0\n"), Some(true));
        assert_eq!(new_enough("QEMU emulator version 10.1.92 (v10.2.0-rc2)"), Some(false));
        assert_eq!(new_enough("QEMU emulator version 9.10.0"), Some(false));
        assert_eq!(new_enough("something else"), None);
        assert_eq!(new_enough("QEMU emulator version 99999999999.1"), None);
    }

    #[test]
    fn a_program_that_prints_much_or_closes_its_output_ends() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec >&-; exit 0", "sh"]);
        assert_eq!(version_of(shell).unwrap(), "");
        let begin = Instant::now();
        assert!(version_of(Command::new("/nonexistent/qemu")).is_err());
        assert!(begin.elapsed().as_secs() < 5);
    }
}
