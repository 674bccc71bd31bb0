// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Debian package, installed in Debian, and its units, started by the systemd that runs there. The functions are simulated:
//! with real ones the lab's scenario `vtd-package` does the same.

use crate::dist;
use crate::lab;
use crate::outcome::Outcome;
use std::path::Path;
use std::time::Duration;
use virtio_irq_lab::checks::{Report, Unmet, expect};
use virtio_irq_lab::package::{self, Package, SERVICE, SOCKET, System};
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

const DEVICES: &str = "--device sim:wcn6855,guest=00:06.0 --device sim:igb";
const FUNCTIONS: usize = 2;

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
    let layout = Layout::new(root);
    provision(&layout, false)?;
    let package = package::bring(&layout)?;
    let container = Container::boot(&layout, NAME)?;
    let mut report = Report::new(NAME, CHECKS.to_vec(), lab::print);
    if let Err(error) = play(&container, &mut report, package) {
        report.close(&error.to_string(), container.log());
    }
    Ok(report)
}

fn play(container: &Container, report: &mut Report, path: &str) -> Result<()> {
    let (log, package) = (container.log(), Package(container));
    report.check("package-installs", log, || package.install(path))?;
    report.check("socket-is-for-qemus-group", log, || {
        package.listen(DEVICES)?;
        let group = container.run(&["stat", "--format=%A %U %G", SOCKET])?;
        let service = package.state(SERVICE)?;
        expect(
            group == "srw-rw---- root kvm" && service == "inactive",
            format!("{SOCKET}: {group}; the service is {service}"),
        )
    })?;
    report.check("frontend-starts-the-daemon", log, || {
        let functions = functions(container)?;
        let state = package.state(SERVICE)?;
        expect(
            functions.len() == FUNCTIONS && state == "active",
            format!("{} functions told over {SOCKET}; the service is {state}", functions.len()),
        )
    })?;
    report.check("daemon-is-confined", log, || package.confinement())?;
    report.check("stops-cleanly", log, || package.stop())?;
    report.check("starts-by-name", log, || {
        container.run(&["systemctl", "start", SERVICE])?;
        let started = package.state(SERVICE)?;
        let functions = functions(container)?.len();
        let stopped = package.stop()?;
        expect(
            started == "active" && functions == FUNCTIONS,
            format!("{started}, {functions} functions; {stopped}"),
        )
    })?;
    report.check("package-removes", log, || package.purge())
}

/// The functions that the daemon tells a frontend outside of the container.
fn functions(container: &Container) -> Result<Vec<Function>, Unmet> {
    let socket = container.outside(SOCKET);
    // systemd has to start the daemon first.
    let options = Options { timeout: Duration::from_secs(60), ..Options::default() };
    let ask = || -> Result<_, DriverError> { Driver::connect(&socket, options)?.functions() };
    ask().map_err(|error| Unmet::Seen(format!("no answer at {SOCKET}: {error}")))
}
