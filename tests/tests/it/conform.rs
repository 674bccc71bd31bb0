// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The conformance checker against our device: the daemon as users run it, and the device in this process, whose
//! simulated host does what the checker wants.

use serde_json::Value;
use std::process::Command;
use vhost_device_irq::host::sim::SimFunction;
use virtio_irq_conform::{Action, PATIENCE, Provoke, ProvokeError, Verdict, check};
use virtio_irq_proto::{FunctionFlags, PciIds};
use virtio_irq_tests::program::{Profile, build};
use virtio_irq_tests::{Daemon, Served};

/// Requirements that no check tries, by whatever means.
const NEVER: [&str; 10] = [
    "IRQ-DEV-17",
    "IRQ-DEV-25",
    "IRQ-DEV-29",
    "IRQ-DEV-52",
    "IRQ-DEV-66",
    "IRQ-DEV-36",
    "IRQ-DEV-56",
    "IRQ-DEV-38",
    "IRQ-DEV-77",
    "IRQ-DEV-78",
];

/// Simulated functions, whose ids are their positions.
struct Host(Vec<SimFunction>);

impl Provoke for Host {
    fn provoke(&self, action: Action) -> Result<(), ProvokeError> {
        let named = |id: u16| self.0.get(usize::from(id)).ok_or(ProvokeError::Impossible(action));
        match action {
            Action::Raise { function, vector } => _ = named(function)?.fire(vector),
            Action::Move { function } => named(function)?.move_messages(),
            Action::Take { function } => named(function)?.take_away(),
            Action::Fail { function } => named(function)?.fail(1),
            Action::Remove { function } => named(function)?.remove(),
        }
        Ok(())
    }
}

#[test]
fn our_device_holds_every_requirement_that_can_be_seen() {
    let function = |index| {
        let ids = PciIds { device: index, ..PciIds::default() };
        // MSI and MSI-X in turns.
        let (msi, msix) = if index % 2 == 0 { (32, 0) } else { (1, 10) };
        SimFunction::new("sim", ids, msi, msix, index)
    };
    let host = Host((0..8).map(function).collect());
    let flags = FunctionFlags::NATIVE
        .with(FunctionFlags::EVENT, true)
        .with(FunctionFlags::ISOLATED, true)
        .with(FunctionFlags::STABLE, true);
    let served = Served::start_with(&host.0, flags);
    let report = check(served.socket(), PATIENCE, &host);
    let other: Vec<_> = report
        .findings
        .iter()
        .filter(|found| found.verdict != Verdict::Held)
        .map(|found| found.requirement.id)
        .collect();
    assert!(report.passed(), "{}{}", report.table(false), report.details());
    assert_eq!(other, NEVER, "{}", report.table(false));
}

#[test]
fn the_checker_passes_on_the_daemon_and_says_what_it_could_not_see() {
    let daemon = Daemon::start(&[
        "--device",
        "sim:wcn6855,guest=00:06.0",
        "--device",
        "sim:igb",
        "--device",
        "sim:edu",
    ]);
    let program = build("virtio-irq-conform", "virtio-irq-conform", Profile::Debug);
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--socket-path").arg(daemon.socket()).args(arguments).output().unwrap()
    };
    let people = run(&[]);
    let text = String::from_utf8(people.stdout).unwrap();
    assert_eq!(people.status.code(), Some(0), "{text}");
    assert!(text.contains(" held, 0 broken, "), "{text}");
    let programs = run(&["--json"]);
    let report: Value = serde_json::from_slice(&programs.stdout).unwrap();
    assert_eq!((&report["passed"], &report["broken"]), (&Value::Bool(true), &Value::from(0)), "{report:#}");
    // Fewer than with a host that does as it is told, but not few.
    assert!(report["held"].as_u64().unwrap() >= 43, "{report:#}");
}

#[test]
fn a_device_that_is_not_there_does_not_pass() {
    let program = build("virtio-irq-conform", "virtio-irq-conform", Profile::Debug);
    let output = Command::new(program).args(["--socket-path", "/nonexistent/irq.sock"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("/nonexistent/irq.sock: the device cannot be used"), "{error}");
}
