// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask demo`: the first scenario as a person wants to see it.

use crate::{lab, table};
use comfy_table::Table;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use virtio_irq_lab::checks::{Report, Row};
use virtio_irq_lab::{Error, Layout, build, provision, scenarios};

/// The scenario that is the demonstration.
const SCENARIO: &str = "vtd-native-edu";

pub(crate) fn run(root: &Path) -> ExitCode {
    let start = Instant::now();
    match show(root) {
        Ok(report) if report.passed() => {
            conclude(&report, start);
            ExitCode::SUCCESS
        }
        Ok(report) => {
            lab::summarize(&report, false);
            println!("\nThis is not as it should be: the failed checks above name the logs to look into.");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("cargo xtask demo: {error}");
            if matches!(error, Error::Missing { .. }) {
                eprintln!("  `cargo xtask demo --simulated` shows the same flow without any of this");
            }
            ExitCode::FAILURE
        }
    }
}

fn show(root: &Path) -> Result<Report, Error> {
    let scenario = scenarios::ALL.iter().find(|scenario| scenario.name == SCENARIO);
    let scenario = scenario.ok_or_else(|| Error::Unexpected(format!("no scenario {SCENARIO:?}")))?;
    let layout = Layout::new(root);
    println!("1. Prepare: Debian tree, daemon, kernel modules");
    provision(&layout, false)?;
    let artifacts = build(&layout)?;
    println!("\n2. Run: an emulated host with an IOMMU, in it KVM and a guest with an assigned device");
    let report = scenario.run(&layout, &artifacts, None, lab::print);
    println!("\n3. What happened\n\n{}", rows_table(report.rows()));
    Ok(report)
}

fn rows_table(rows: &[Row]) -> Table {
    let mut table = table::new(&[
        "",
        "function",
        "vector",
        "guest's pair",
        "device writes",
        "sent",
        "handled",
        "outcome",
    ]);
    for row in rows {
        table.add_row([
            row.situation.clone(),
            row.function.clone(),
            row.vector.clone(),
            row.guest_pair.clone(),
            row.host_pair.clone(),
            row.sent.to_string(),
            row.handled.to_string(),
            row.outcome.clone(),
        ]);
    }
    table
}

fn conclude(report: &Report, start: Instant) {
    let (sent, handled) = report
        .rows()
        .iter()
        .filter(|row| row.sent == row.handled)
        .fold((0, 0), |(sent, handled), row| (sent + row.sent, handled + row.handled));
    println!(
        "\nThe guest's own pair raised nothing in the guest; the pair that virtio-irq told raised {handled} of {sent} interrupts, \
         over {} situations and on stock Debian kernels.\n{} checks passed in {:.0} s, {:.0} s with preparation.",
        report.rows().iter().filter(|row| row.sent == row.handled).count(),
        report.checks().len(),
        report.elapsed().as_secs_f32(),
        start.elapsed().as_secs_f32(),
    );
}
