// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Debian package, installed in Debian, and its units, started by the systemd that runs there. The functions are simulated:
//! what the daemon does with real ones is the lab's.

use crate::dist;
use crate::lab;
use crate::test::Outcome;
use std::fs;
use std::path::{Path, PathBuf};
use virtio_irq_lab::checks::{Report, Unmet, Verdict, expect};
use virtio_irq_lab::{Container, Error, Layout, Result, provision};
use virtio_irq_proto::Function;
use virtio_irq_userspace::{Driver, DriverError, Options};

const NAME: &str = "package";

const CHECKS: &[&str] = &[
    "package-installs",
    "socket-is-for-qemus-group",
    "frontend-starts-the-daemon",
    "daemon-is-confined",
    "stops-cleanly",
    "starts-by-name",
    "package-removes",
];

const SERVICE: &str = "vhost-device-irq@lab.service";
const SOCKET_UNIT: &str = "vhost-device-irq@lab.socket";
const SOCKET: &str = "/run/vhost-device-irq/lab.sock";
const SETTINGS: &str = "/etc/vhost-device-irq/lab.conf";
const DEVICES: &str = "DEVICES=\"--device sim:wcn6855,guest=00:06.0 --device sim:igb\"\n";
const FUNCTIONS: usize = 2;

/// CAP_SYS_ADMIN and CAP_SYS_PTRACE, as /proc/PID/status has them.
const CAPABILITIES: u64 = 1 << 21 | 1 << 19;

/// A stage of `cargo xtask test`.
pub(crate) fn check(root: &Path) -> Outcome {
    match dist::debian_package(root) {
        Outcome::Passed => {}
        other => return other,
    }
    match show(root) {
        Ok(report) => {
            lab::summarize(&report, false);
            if report.passed() { Outcome::Passed } else { Outcome::Failed(NAME.to_owned()) }
        }
        Err(error @ Error::Missing { .. }) => Outcome::NotRun(format!(
            "{error}\n  untested: whether the package installs and systemd starts it"
        )),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

fn show(root: &Path) -> Result<Report> {
    let package = package(&root.join(dist::DIST))?;
    let layout = Layout::new(root);
    provision(&layout, false)?;
    let container = Container::boot(&layout, NAME)?;
    let mut report = Report::new(NAME, CHECKS.to_vec(), lab::print);
    if let Err(error) = play(&container, &mut report, &package) {
        report.close(&error.to_string(), container.log());
    }
    Ok(report)
}

fn package(dist: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(dist).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut packages = entries.filter(|path| path.extension().is_some_and(|extension| extension == "deb"));
    packages.next().ok_or_else(|| Error::Unexpected(format!("no package in {}", dist.display())))
}

fn play(container: &Container, report: &mut Report, package: &Path) -> Result<()> {
    let log = container.log();
    report.check("package-installs", log, || {
        fs::copy(package, container.outside("/root/package.deb")).map_err(unexpected)?;
        container.run(&["dpkg", "--install", "/root/package.deb"])?;
        let status =
            ["dpkg-query", "--show", "--showformat=${Package} ${Version}: ${Status}", "vhost-device-irq"];
        let seen = container.run(&status)?;
        expect(seen.ends_with(": install ok installed"), seen)
    })?;
    report.check("socket-is-for-qemus-group", log, || {
        let settings = container.outside(SETTINGS);
        settings.parent().map_or(Ok(()), fs::create_dir_all).map_err(unexpected)?;
        fs::write(&settings, DEVICES).map_err(unexpected)?;
        container.run(&["systemctl", "daemon-reload"])?;
        container.run(&["systemctl", "start", SOCKET_UNIT])?;
        let group = container.run(&["stat", "--format=%A %U %G", SOCKET])?;
        let service = state(container, SERVICE)?;
        expect(
            group == "srw-rw---- root kvm" && service == "inactive",
            format!("{SOCKET}: {group}; the service is {service}"),
        )
    })?;
    report.check("frontend-starts-the-daemon", log, || {
        let functions = functions(container)?;
        let state = state(container, SERVICE)?;
        expect(
            functions.len() == FUNCTIONS && state == "active",
            format!("{} functions told over {SOCKET}; the service is {state}", functions.len()),
        )
    })?;
    report.check("daemon-is-confined", log, || confinement(container))?;
    report.check("stops-cleanly", log, || stop(container))?;
    report.check("starts-by-name", log, || {
        container.run(&["systemctl", "start", SERVICE])?;
        let started = state(container, SERVICE)?;
        let functions = functions(container)?.len();
        let stopped = stop(container)?;
        expect(
            started == "active" && functions == FUNCTIONS,
            format!("{started}, {functions} functions; {stopped}"),
        )
    })?;
    report.check("package-removes", log, || {
        container.run(&["dpkg", "--purge", "vhost-device-irq"])?;
        let left = container.outside("/usr/bin/vhost-device-irq").exists();
        expect(!left, if left { "the daemon is still there" } else { "the daemon is gone" })
    })
}

/// The functions that the daemon tells a frontend outside of the container.
fn functions(container: &Container) -> Result<Vec<Function>, Unmet> {
    let socket = container.outside(SOCKET);
    let ask = || -> Result<_, DriverError> { Driver::connect(&socket, Options::default())?.functions() };
    ask().map_err(|error| Unmet::Seen(format!("no answer at {SOCKET}: {error}")))
}

/// What the kernel has made of the unit's settings.
fn confinement(container: &Container) -> Verdict {
    let process = container.run(&["systemctl", "show", "--property=MainPID", "--value", SERVICE])?;
    let status =
        fs::read_to_string(container.outside(&format!("/proc/{process}/status"))).map_err(unexpected)?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).unwrap_or_default()
    };
    let capabilities = u64::from_str_radix(field("CapBnd"), 16).unwrap_or(u64::MAX);
    let held = capabilities == CAPABILITIES && field("NoNewPrivs") == "1" && field("Seccomp") == "2";
    let seen = ["CapBnd", "NoNewPrivs", "Seccomp"].map(|name| format!("{name} {}", field(name))).join(", ");
    expect(held, seen)
}

/// Stops socket and service, which have to leave nothing behind.
fn stop(container: &Container) -> Verdict {
    container.run(&["systemctl", "stop", SOCKET_UNIT, SERVICE])?;
    let end =
        container.run(&["systemctl", "show", "--property=Result,ExecMainStatus,ActiveState", SERVICE])?;
    let left = container.outside(SOCKET).exists();
    let clean = ["Result=success", "ExecMainStatus=0", "ActiveState=inactive"];
    let seen =
        format!("{}; the socket is {}", end.replace('\n', ", "), if left { "still there" } else { "gone" });
    expect(!left && clean.iter().all(|line| end.lines().any(|it| it == *line)), seen)
}

/// `systemctl is-active` fails for all but one answer.
fn state(container: &Container, unit: &str) -> Result<String> {
    container.run(&["systemctl", "show", "--property=ActiveState", "--value", unit])
}

fn unexpected(error: std::io::Error) -> Error {
    Error::Unexpected(error.to_string())
}
