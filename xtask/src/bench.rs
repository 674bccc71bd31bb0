// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask bench`: what the device costs, as a file and as a page.

use crate::table;
use serde_json::Value;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use virtio_irq_tests::program::{Profile, build};

/// Where the numbers go, below the workspace's root.
const RESULTS: &str = "target/bench/results.json";
/// Where the page goes.
const PAGE: &str = "docs/bench.md";

pub(crate) fn run(root: &Path) -> ExitCode {
    match measure(root) {
        Ok(page) => {
            println!("{page}\nwritten to {RESULTS} and {PAGE}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cargo xtask bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(root: &Path) -> io::Result<String> {
    println!("building for release ...");
    build("vhost-device-irq", "vhost-device-irq", Profile::Release);
    let bench = build("virtio-irq-tests", "virtio-irq-bench", Profile::Release);
    let output = Command::new(bench).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("the benchmark failed: {}", output.status)));
    }
    let results: Value = serde_json::from_slice(&output.stdout)?;
    let page = page(&results);
    write(&root.join(RESULTS), &output.stdout)?;
    write(&root.join(PAGE), page.as_bytes())?;
    Ok(page)
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, content)
}

fn page(results: &Value) -> String {
    let machine = &results["machine"];
    let virtual_machine = if machine["virtual"] == true { ", a virtual machine" } else { "" };
    format!(
        "<!-- Written by `cargo xtask bench`. -->\n\
         # Figures\n\n\
         Measured on {} with {} cores{virtual_machine}, Linux {}. Release build, simulated host, two processes, all kinds in turns \
         in one run.\n\n{}\n\n{}\n\n{}\n",
        machine["cpu"].as_str().unwrap_or("an unknown machine"),
        machine["cores"],
        machine["kernel"].as_str().unwrap_or("?"),
        round_trips(&results["round_trip"]),
        host(&results["host"]),
        idle(&results["idle"]),
    )
}

fn round_trips(of: &Value) -> String {
    let mut table =
        table::markdown(&["round trip between two processes", "median", "p99", "times the floor"]);
    for (key, name) in [
        ("eventfd_read", "floor: eventfd there, eventfd back, both sides blocked in read"),
        ("eventfd_epoll", "the same, both sides waiting in epoll as driver and daemon do"),
        ("get_messages_1", "get-messages, 1 vector"),
        ("get_messages_32", "get-messages, 32 vectors"),
    ] {
        let row = &of[key];
        let times = format!("{:.2}", row["times_floor"].as_f64().unwrap_or(f64::NAN));
        table.add_row([name.to_owned(), time(&row["median_ns"]), time(&row["p99_ns"]), times]);
    }
    let ratio = |key: &str| of["get_messages_1"][key].as_f64().unwrap_or(f64::NAN);
    let median = |key: &str| of[key]["median_ns"].as_f64().unwrap_or(f64::NAN) / 1000.0;
    let waits = median("eventfd_epoll") - median("eventfd_read");
    let rest = median("get_messages_1") - median("eventfd_epoll");
    format!(
        "{table}\n\n\
         Aim: one vector at most 1.3 times the floor. Measured: {:.2} times. Of what is above the floor, {waits:.1} µs are \
         the waits in epoll: the daemon has two queues and its end to wait for, the driver a limit. {:.1} µs are code, on both \
         sides together: taking and returning chains, copying in and out of guest memory, the device itself. Against a floor \
         that waits the same way it is {:.2} times.",
        ratio("times_floor"),
        rest,
        ratio("times_epoll_floor"),
    )
}

fn host(of: &Value) -> String {
    let mut table = table::markdown(&["reading one MSI message on the host, on top of it", "median", "p99"]);
    let files = &of["msi_message_from_files"];
    table.add_row([
        "code and system calls, from ordinary files",
        &time(&files["median_ns"]),
        &time(&files["p99_ns"]),
    ]);
    if let Some(device) = of["real_config"]["device"].as_str() {
        let read = &of["real_config"]["read"];
        let name = format!("the same reads of {device}'s real registers, by sysfs");
        table.add_row([name, time(&read["median_ns"]), time(&read["p99_ns"])]);
    }
    table.to_string()
}

fn idle(of: &Value) -> String {
    let mut table = table::markdown(&["daemon with an idle guest", "measured", "aim"]);
    let mib = |key: &str| format!("{:.1} MiB", of[key].as_f64().unwrap_or(f64::NAN) / 1024.0);
    table.add_row([
        "resident memory before the first guest",
        &mib("resident_kib_without_guest"),
        "less than 6 MiB",
    ]);
    table.add_row(["resident memory with a guest", &mib("resident_kib_with_guest"), "less than 6 MiB"]);
    let wakeups = format!(
        "{} in {:.0} s, {:.1} a minute",
        of["wakeups"],
        of["seconds"].as_f64().unwrap_or(f64::NAN),
        of["wakeups_per_minute"].as_f64().unwrap_or(f64::NAN)
    );
    table.add_row(["wakeups of all its threads", &wakeups, "0 a minute"]);
    table.to_string()
}

fn time(nanoseconds: &Value) -> String {
    format!("{:.1} µs", nanoseconds.as_f64().unwrap_or(f64::NAN) / 1000.0)
}
