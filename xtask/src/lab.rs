// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask lab`: scenarios on emulated machines.

use crate::dist;
use crate::outcome::Outcome;
use clap::Args;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use virtio_irq_lab::checks::{Check, Report};
use virtio_irq_lab::package;
use virtio_irq_lab::scenarios::{self, Scenario};
use virtio_irq_lab::{Artifacts, Error, Layout, build, provision};

/// Exit code where a scenario could not be run at all, as opposed to one that failed.
const NOT_RUN: u8 = 2;

#[derive(Args)]
pub(crate) struct Options {
    /// Scenarios to run; all of them if none is named
    names: Vec<String>,
    /// List the scenarios, their checks and their sabotages
    #[arg(long)]
    list: bool,
    /// Print the results as JSON on standard output, and everything else on standard error
    #[arg(long)]
    json: bool,
    /// Break the scenario in one of its listed ways, or one after the other in several, and expect the check that this is
    /// for to fail; `all` goes through all of them
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    sabotage: Vec<String>,
    /// Make the Debian tree anew, with the newest QEMU and kernel
    #[arg(long)]
    fresh_tree: bool,
}

pub(crate) fn run(root: &Path, options: &Options) -> ExitCode {
    if options.list {
        list();
        return ExitCode::SUCCESS;
    }
    let result = chosen(&options.names).and_then(|scenarios| match options.sabotage.as_slice() {
        [] => reports(root, &scenarios, options),
        which => sabotage(root, &scenarios, which, options),
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo xtask lab: {error}");
            ExitCode::from(NOT_RUN)
        }
    }
}

/// All scenarios, as a stage of `cargo xtask test`.
pub(crate) fn test_all(root: &Path) -> Outcome {
    let layout = Layout::new(root);
    let run = || {
        provision(&layout, false)?;
        let artifacts = build(&layout)?;
        for (name, why) in
            scenarios::ALL.iter().filter_map(|scenario| Some((scenario.name, scenario.unsettled?)))
        {
            println!("NOT RUN  {name}: {why}; `cargo xtask lab {name}` runs it");
        }
        let packaged = package::built(&layout).is_some();
        if !packaged {
            println!(
                "NOT RUN  {}: there is no Debian package; `cargo xtask dist` builds it",
                scenarios::PACKAGED
            );
        }
        let possible = |scenario: &&&Scenario| packaged || scenario.name != scenarios::PACKAGED;
        let settled = scenarios::ALL.iter().filter(|scenario| scenario.unsettled.is_none()).filter(possible);
        let failed = settled.filter(|scenario| {
            title(scenario, false);
            let report = scenario.run(&layout, &artifacts, None, print);
            summarize(&report, false);
            !report.passed()
        });
        Ok(failed.map(|scenario| scenario.name).collect::<Vec<_>>())
    };
    match run() {
        Ok(failed) if failed.is_empty() => Outcome::Passed,
        Ok(failed) => Outcome::Failed(failed.join(", ")),
        Err(error @ Error::Missing { .. }) => {
            Outcome::NotRun(format!("{error}\n  untested: everything that needs a real kernel, VFIO or QEMU"))
        }
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

fn list() {
    for scenario in scenarios::ALL {
        println!("{}: {}", scenario.name, scenario.summary);
        println!("  checks:");
        for check in scenario.checks() {
            println!("    {check}");
        }
        println!("  sabotages:");
        for sabotage in scenario.sabotages() {
            println!("    {:<24} {}; fails {}", sabotage.name, sabotage.what, sabotage.fails);
        }
    }
}

fn chosen(names: &[String]) -> Result<Vec<&'static Scenario>, Error> {
    if names.is_empty() {
        return Ok(scenarios::ALL.to_vec());
    }
    let find = |name: &String| {
        let known = scenarios::ALL.iter().find(|scenario| scenario.name == *name).copied();
        known.ok_or_else(|| {
            Error::Unexpected(format!("no scenario {name:?}; `cargo xtask lab --list` shows them"))
        })
    };
    names.iter().map(find).collect()
}

/// What these scenarios need: the tree, programs and modules, and the Debian package if one of them installs it.
fn prepare(
    root: &Path,
    scenarios: &[&'static Scenario],
    options: &Options,
) -> Result<(Layout, Artifacts), Error> {
    let layout = Layout::new(root);
    provision(&layout, options.fresh_tree)?;
    let artifacts = build(&layout)?;
    if scenarios.iter().any(|scenario| scenario.name == scenarios::PACKAGED) {
        match dist::package(root) {
            Outcome::Passed => {}
            Outcome::Failed(why) | Outcome::NotRun(why) => return Err(Error::Unexpected(why)),
        }
    }
    Ok((layout, artifacts))
}

fn reports(root: &Path, scenarios: &[&'static Scenario], options: &Options) -> Result<bool, Error> {
    let (layout, artifacts) = prepare(root, scenarios, options)?;
    let run = |scenario: &&'static Scenario| {
        title(scenario, options.json);
        let report = scenario.run(&layout, &artifacts, None, if options.json { print_aside } else { print });
        summarize(&report, options.json);
        report
    };
    let reports: Vec<_> = scenarios.iter().map(run).collect();
    let passed = reports.iter().all(Report::passed);
    if options.json {
        let scenarios: Vec<_> = reports.iter().map(Report::json).collect();
        println!("{:#}", serde_json::json!({ "passed": passed, "scenarios": scenarios }));
    }
    Ok(passed)
}

/// Runs one scenario, broken: success is that the right check fails.
fn sabotage(
    root: &Path,
    scenarios: &[&'static Scenario],
    which: &[String],
    options: &Options,
) -> Result<bool, Error> {
    let planned: Vec<_> = scenarios
        .iter()
        .flat_map(|scenario| scenario.sabotages().map(move |sabotage| (*scenario, sabotage)))
        .filter(|(_, sabotage)| which.iter().any(|what| what == "all" || what == sabotage.name))
        .collect();
    if planned.is_empty() {
        return Err(Error::Unexpected(format!("no sabotage {which:?}; `cargo xtask lab --list` shows them")));
    }
    let concerned: Vec<_> = planned.iter().map(|(scenario, _)| *scenario).collect();
    let (layout, artifacts) = prepare(root, &concerned, options)?;
    let mut results = Vec::new();
    for (scenario, sabotage) in planned {
        eprintln!("\n{} with {}: {}", scenario.name, sabotage.name, sabotage.what);
        let report = scenario.run(&layout, &artifacts, Some(sabotage), print_aside);
        // A check that the scenario did not come to can be one that never fails.
        let caught = report.checks().iter().any(|check| check.name == sabotage.fails && check.has_caught());
        let failed: Vec<_> =
            report.checks().iter().filter(|check| !check.passed).map(|check| check.name).collect();
        if !options.json {
            let verdict = if caught { "caught" } else { "NOT CAUGHT" };
            println!(
                "{verdict:<10}  {:<24} by {}; failed: {}",
                sabotage.name,
                sabotage.fails,
                failed.join(", ")
            );
        }
        results.push(serde_json::json!({
            "scenario": scenario.name, "sabotage": sabotage.name, "expected": sabotage.fails, "caught": caught,
            "failed": failed,
        }));
    }
    let caught = results.iter().all(|result| result["caught"] == true);
    if options.json {
        println!("{:#}", serde_json::json!({ "passed": caught, "sabotages": results }));
    }
    Ok(caught)
}

fn title(scenario: &Scenario, aside: bool) {
    say(&format!("\n{}: {}", scenario.name, scenario.summary), aside);
}

/// Prints a check as it is made.
pub(crate) fn print(check: &Check) {
    println!("{}", line(check, std::io::stdout().is_terminal()));
}

fn print_aside(check: &Check) {
    eprintln!("{}", line(check, std::io::stderr().is_terminal()));
}

fn line(check: &Check, color: bool) -> String {
    let (word, code) = if check.passed { ("passed", "32") } else { ("FAILED", "1;31") };
    let word = if color { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() };
    let mut line = format!("  {word}  {:<38} {}", check.name, check.seen);
    if !check.passed {
        line.push_str(&format!("\n          log: {}", check.log.display()));
    }
    line
}

/// Prints the last lines of a scenario.
pub(crate) fn summarize(report: &Report, aside: bool) {
    let failed = report.checks().iter().filter(|check| !check.passed).count();
    let passed = report.checks().len() - failed;
    let seconds = report.elapsed().as_secs_f32();
    say(&format!("  {passed} checks passed, {failed} failed, in {seconds:.1} s"), aside);
}

fn say(text: &str, aside: bool) {
    if aside {
        eprintln!("{text}");
    } else {
        println!("{text}");
    }
}
