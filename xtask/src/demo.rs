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
    let header = [
        "",
        "function",
        "vector",
        "guest's pair",
        "host's pair",
        "device wrote",
        "sent",
        "handled",
        "outcome",
    ];
    let mut table = table::new(&header);
    for row in rows {
        table.add_row([
            &row.situation,
            &row.function,
            &row.vector,
            &row.guest_pair,
            &row.host_pair,
            &row.written,
            &row.sent.to_string(),
            &row.handled.to_string(),
            &row.outcome,
        ]);
    }
    table
}

/// Says in numbers of this run what it has shown.
fn conclude(report: &Report, start: Instant) {
    let told = report.rows().iter().filter(|row| row.written == row.host_pair);
    let (situations, sent, handled) = told.fold((0, 0, 0), |(situations, sent, handled), row| {
        (situations + 1, sent + row.sent, handled + row.handled)
    });
    println!(
        "\nA guest that programs the pair it sees hears nothing of its device. With the pair that virtio-irq tells it,\n\
         {handled} of {sent} interrupts arrived, in {situations} situations, on stock Debian kernels.\n\n\
         {} checks passed in {:.0} s, {:.0} s with preparation.",
        report.checks().len(),
        report.elapsed().as_secs_f32(),
        start.elapsed().as_secs_f32(),
    );
}
