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
    let head = format!(
        "<!-- Written by `cargo xtask bench`. -->\n\
         # Figures\n\n\
         Measured on {} with {} cores{virtual_machine}, Linux {}, at a load of {:.1} before the first measurement. Release \
         build, simulated host, all kinds of a table in turns in one run.",
        machine["cpu"].as_str().unwrap_or("an unknown machine"),
        machine["cores"],
        machine["kernel"].as_str().unwrap_or("?"),
        number(&machine["load"]),
    );
    let parts = [
        head,
        round_trips(&results["round_trip"]),
        daemon(&results["round_trip"]["daemon"]),
        rates(&results["rates"]),
        storms(&results["storms"]),
        allocations(&results["allocations"]),
        control(&results["control"]),
        host(&results["host"]),
        idle(&results["idle"]),
    ];
    parts.join("\n\n") + "\n"
}

fn round_trips(of: &Value) -> String {
    let columns =
        ["between two processes, there and back", "median", "p99", "times the floor", "of the second"];
    let mut table = table::markdown(&columns);
    for (key, name) in [
        ("eventfd_read", "floor: eventfd there, eventfd back, both sides blocked in read"),
        ("eventfd_epoll", "second floor: the same, both sides waiting in epoll as driver and daemon do"),
        ("interrupt", "interrupt: the host's eventfd to the guest's call"),
        ("get_messages_plain", "get-messages, 1 vector, a guest that only moves its rings"),
        ("get_messages_1", "get-messages, 1 vector, the reference driver"),
        ("get_messages_32", "get-messages, 32 vectors, the reference driver"),
    ] {
        let row = &of[key];
        let times = |key: &str| format!("{:.2}", number(&row[key]));
        let [first, second] = ["times_floor", "times_epoll_floor"].map(times);
        table.add_row([name.to_owned(), time(&row["median_ns"]), time(&row["p99_ns"]), first, second]);
    }
    let times = |key: &str| number(&of[key]["times_floor"]);
    let median = |key: &str| number(&of[key]["median_ns"]) / 1000.0;
    format!(
        "{table}\n\n\
         Both processes are on one core, so that none waits for a core to wake up. Aim: interrupt and get-messages of one \
         vector at most 1.3 times the floor. Measured: {:.2} times, and {:.2} times with the reference driver, {:.2} with a guest \
         that only moves its rings. {:.1} µs of the difference are waits in epoll, which both sides need that have more than one thing to wait for. The \
         reference driver takes {:.1} µs more for itself: it copies everything into and out of guest memory, and checks it.",
        times("interrupt"),
        times("get_messages_1"),
        times("get_messages_plain"),
        median("eventfd_epoll") - median("eventfd_read"),
        median("get_messages_1") - median("get_messages_plain"),
    )
}

/// What the daemon does for each of these.
fn daemon(of: &Value) -> String {
    let mut table = table::markdown(&[
        "the daemon's part",
        "system calls for each",
        "time in the kernel",
        "in the daemon",
        "in libraries",
    ]);
    for (key, name) in [("interrupt", "interrupt"), ("get_messages", "get-messages, 1 vector")] {
        let calls = of[key]["system_calls"].as_object().into_iter().flatten();
        // What happens once in a while, such as a look at the clock, is none of it.
        let calls = calls.filter(|(_, count)| number(count) > 0.01);
        let calls: Vec<_> = calls.map(|(name, count)| format!("{:.1} {name}", number(count))).collect();
        let share = |whose: &str| format!("{:.0} %", number(&of[key]["time"][whose]));
        let [kernel, own, libraries] = ["kernel", "daemon", "libraries"].map(share);
        table.add_row([name.to_owned(), calls.join(", "), kernel, own, libraries]);
    }
    table.to_string()
}

fn rates(of: &Value) -> String {
    let mut table = table::markdown(&[
        "interrupts as fast as they can come",
        "fired in a second",
        "events in a second",
        "the daemon's share of a core",
        "events in a second of its time",
    ]);
    for row in of.as_array().into_iter().flatten() {
        table.add_row([
            sources(row),
            thousands(&row["fired_per_second"]),
            thousands(&row["delivered_per_second"]),
            percent(&row["cpu_share"]),
            thousands(&row["delivered_per_cpu_second"]),
        ]);
    }
    format!(
        "{table}\n\nThe daemon has a core of its own; host and guest share another one and are what limits it. Aim: at least \
         500,000 events in a second of the daemon's time, however many sources there are."
    )
}

fn storms(of: &Value) -> String {
    let mut table = table::markdown(&[
        "one source that fires all the time",
        "fired in a second",
        "events in a second",
        "the daemon's share of a core",
    ]);
    let limited = format!("--source-rate-limit {}", of["limit"]);
    for (key, name) in [("unlimited", "without a limit"), ("limited", limited.as_str())] {
        let row = &of[key];
        let [fired, delivered] = ["fired_per_second", "delivered_per_second"].map(|key| thousands(&row[key]));
        table.add_row([name.to_owned(), fired, delivered, percent(&row["cpu_share"])]);
    }
    table.to_string()
}

fn allocations(of: &Value) -> String {
    let mut table = table::markdown(&[
        "sources, all with one request",
        "allocate",
        "for each",
        "free",
        "for each",
        "the kernel's part of allocating",
    ]);
    for row in of.as_array().into_iter().flatten() {
        let each = |key: &str| {
            let median = &row[key]["median_ns"];
            [time(median), time(&Value::from(number(median) / number(&row["sources"])))]
        };
        let ([all, one], [all_freed, one_freed]) = (each("allocate"), each("free"));
        table.add_row([sources(row), all, one, all_freed, one_freed, time(&row["eventfds"]["median_ns"])]);
    }
    let (fixed, each) = line(of);
    format!(
        "{table}\n\nMedians, with the round trip, both processes on one core, one number of sources after the other. A request costs \
         {} whatever it asks for, and {} more for each source: that line goes through the first row and the last. The kernel's \
         part is an eventfd for each source, a second descriptor of it \
         as VFIO takes one, and a place in an epoll instance, made in a loop without a daemon. Aim: the cost of each source \
         does not grow with their number.",
        time(&Value::from(fixed)),
        time(&Value::from(each)),
    )
}

/// What an allocation costs by itself and what each source adds, in nanoseconds.
fn line(of: &Value) -> (f64, f64) {
    let row = |row: Option<&Value>| {
        row.map(|row| (number(&row["sources"]), number(&row["allocate"]["median_ns"]))).unwrap_or_default()
    };
    let rows = of.as_array().map(Vec::as_slice).unwrap_or_default();
    let ((few, low), (many, high)) = (row(rows.first()), row(rows.last()));
    let each = (high - low) / (many - few);
    (low - few * each, each)
}

fn sources(row: &Value) -> String {
    if row["sources"] == 1 {
        "1 source".to_owned()
    } else {
        format!("{} sources", thousands(&row["sources"]))
    }
}

/// Clients of the control socket, in turns with none.
fn control(of: &Value) -> String {
    let columns =
        ["with clients at the control socket", "interrupt, median", "p99", "get-messages, median", "p99"];
    let mut table = table::markdown(&columns);
    let watching = format!("{}, each told every {} ms what changed", of["clients"], of["interval_ms"]);
    for (key, name) in [
        ("none", "none".to_owned()),
        ("connected", format!("{}, silent", of["clients"])),
        ("watching", watching),
    ] {
        let [interrupt, request] = ["interrupt", "get_messages"].map(|trip| &of[key][trip]);
        table.add_row([
            name,
            time(&interrupt["median_ns"]),
            time(&interrupt["p99_ns"]),
            time(&request["median_ns"]),
            time(&request["p99_ns"]),
        ]);
    }
    table.to_string()
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
    let mib = |key: &str| format!("{:.1} MiB", number(&of[key]) / 1024.0);
    table.add_row([
        "resident memory before the first guest",
        &mib("resident_kib_without_guest"),
        "less than 6 MiB",
    ]);
    table.add_row(["resident memory with a guest", &mib("resident_kib_with_guest"), "less than 6 MiB"]);
    // Null where the kernel does not tell of children.
    let opener = &of["opener"];
    if opener.is_object() {
        let [all, own] = ["resident_kib", "anonymous_kib"].map(|key| number(&opener[key]) / 1024.0);
        let memory = format!("{all:.1} MiB, {own:.1} MiB of it its own");
        table.add_row(["resident memory of the process that opens devices for it", &memory, ""]);
    }
    let wakeups = format!(
        "{} in {:.0} s, {:.1} a minute",
        of["wakeups"],
        number(&of["seconds"]),
        number(&of["wakeups_per_minute"]),
    );
    table.add_row(["wakeups of all its threads", &wakeups, "0 a minute"]);
    table.to_string()
}

fn time(nanoseconds: &Value) -> String {
    format!("{:.1} µs", number(nanoseconds) / 1000.0)
}

fn percent(share: &Value) -> String {
    format!("{:.0} %", number(share) * 100.0)
}

/// A whole number as people write it: 1,234,567.
fn thousands(value: &Value) -> String {
    let digits = format!("{:.0}", number(value));
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}
