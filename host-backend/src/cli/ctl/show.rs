// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the daemon says, for people. A field that an older or newer daemon does not have is a dash.

use super::object;
use crate::printable::printable;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Map, Value};
use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Number of problems that are shown.
const PROBLEMS: usize = 5;

/// A value without its quotes; what it has of control characters does nothing to the terminal.
pub(super) fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => printable(text),
        other => printable(&other.to_string()),
    }
}

fn words(values: &Value) -> String {
    let words: Vec<_> = values.as_array().into_iter().flatten().map(word).collect();
    if words.is_empty() { "-".to_owned() } else { words.join(" ") }
}

/// Which sources come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Those with the lowest ids.
    Id,
    /// Those that fire most.
    Busy,
}

/// Everything.
pub(super) fn status(status: &Map<String, Value>, rates: &Value, order: Order) -> String {
    let status = Value::Object(status.clone());
    let mut text = head(&status, rates);
    functions(&mut text, object(status.get("functions")));
    sources(&mut text, &status, rates, order);
    problems(&mut text, &status["problems"]);
    text
}

/// What `watch` prints for each look where it cannot redraw.
pub(super) fn line(status: &Map<String, Value>, rates: &Value) -> String {
    let status = Value::Object(status.clone());
    format!(
        "{} s: frontend {}, {} sources, {}/s requests, {}/s events, {}/s interrupts, {} host failures\n",
        status["daemon"]["uptime_ms"].as_u64().unwrap_or(0) / 1000,
        word(&status["frontend"]["state"]),
        word(&status["counts"]["sources"]),
        per_second(&rates["requests"]),
        per_second(&rates["events"]),
        per_second(&rates["interrupts"]),
        word(&status["counts"]["host_failures"]),
    )
}

fn head(status: &Value, rates: &Value) -> String {
    let (daemon, frontend, counts) = (&status["daemon"], &status["frontend"], &status["counts"]);
    let sum = |counts: &Value| object(Some(counts)).values().filter_map(Value::as_u64).sum::<u64>();
    let refused = sum(&counts["replies"]).saturating_sub(counts["replies"]["ok"].as_u64().unwrap_or(0));
    let uptime = Duration::from_millis(daemon["uptime_ms"].as_u64().unwrap_or(0));
    let mut text = format!(
        "vhost-device-irq {}, process {}, running for {}, {}, log level {}\n",
        word(&daemon["version"]),
        word(&daemon["pid"]),
        lasting(uptime),
        if daemon["sandbox"].is_null() { "not confined" } else { "confined" },
        word(&daemon["log_level"]),
    );
    let draining = if status["draining"] == true { ", draining: no further sources" } else { "" };
    text += &format!(
        "frontend {}, {} so far, negotiated {}{draining}\n",
        word(&frontend["state"]),
        word(&frontend["connections"]),
        words(&frontend["negotiated"]),
    );
    text += &vmm(&status["vmm"]);
    text += &format!(
        "{} requests ({}/s), {refused} refused; {} events ({}/s), {} of them interrupts ({}/s); {} host failures\n",
        sum(&counts["requests"]),
        per_second(&rates["requests"]),
        sum(&counts["events"]),
        per_second(&rates["events"]),
        word(&counts["events"]["interrupt"]),
        per_second(&rates["interrupts"]),
        word(&counts["host_failures"]),
    );
    text += &format!(
        "{} of {} sources, at most {} of one function\n",
        word(&counts["sources"]),
        word(&status["limits"]["max_sources"]),
        word(&status["limits"]["max_sources_per_function"]),
    );
    text
}

/// What is known of a VMM that is asked.
fn vmm(vmm: &Value) -> String {
    if vmm.is_null() {
        return String::new();
    }
    let qmp = word(&vmm["qmp"]);
    let mut text = match &vmm["process"] {
        Value::Null => format!("no VMM is known by {qmp}\n"),
        pid => format!(
            "VMM is process {} by {qmp}, its guest sees the device at {}\n",
            word(pid),
            word(&vmm["device"])
        ),
    };
    for problem in vmm["problems"].as_array().into_iter().flatten() {
        text += &format!("  {}\n", word(problem));
    }
    text
}

fn functions(text: &mut String, functions: &Map<String, Value>) {
    let mut table =
        table(&["ID", "FUNCTION", "GUEST", "PCI IDS", "STATE", "INTX", "MSI", "MSI-X", "SOURCES", "FLAGS"]);
    let mut messages = self::table(&["FUNCTION", "VECTOR", "ADDRESS", "DATA", "GENERATION"]);
    for (id, function) in in_order(functions) {
        let vectors = &function["vectors"];
        table.add_row([
            word(&Value::from(id)),
            word(&function["name"]),
            word(&function["guest"]),
            word(&function["ids"]),
            word(&function["state"]),
            word(&vectors["intx"]),
            word(&vectors["msi"]),
            word(&vectors["msix"]),
            word(&function["sources"]),
            words(&function["flags"]),
        ]);
        for block in function["messages"].as_array().into_iter().flatten() {
            let first = block["first"].as_u64().unwrap_or(0);
            let range = match block["count"].as_u64() {
                Some(count @ 2..) => format!("{} {first}-{}", word(&block["type"]), first + (count - 1)),
                _ => format!("{} {first}", word(&block["type"])),
            };
            messages.add_row([
                word(&Value::from(id)),
                range,
                word(&block["address"]),
                word(&block["data"]),
                word(&block["generation"]),
            ]);
        }
    }
    section(text, "Functions", &table, "none");
    section(text, "Messages that the guest was told", &messages, "none");
}

fn sources(text: &mut String, status: &Value, rates: &Value, order: Order) {
    let mut table = table(&["SOURCE", "FUNCTION", "VECTOR", "STATE", "FIRED", "DELIVERED", "FIRED/S"]);
    let rate = |id: &str| rates["sources"].get(id).and_then(Value::as_f64).unwrap_or(0.0);
    let mut sources = in_order(object(status.get("sources")));
    if order == Order::Busy {
        sources.sort_by(|(a, _), (b, _)| rate(b).total_cmp(&rate(a)));
    }
    for (id, source) in sources {
        let state = [
            ("revoked", "revoked"),
            ("held_back", "held back"),
            ("pending", "pending"),
            ("masked", "masked"),
        ];
        let state: Vec<_> =
            state.iter().filter(|(key, _)| source[*key] == true).map(|(_, name)| *name).collect();
        table.add_row([
            word(&Value::from(id)),
            word(&source["function"]),
            format!("{} {}", word(&source["type"]), word(&source["vector"])),
            if state.is_empty() { "ready".to_owned() } else { state.join(" ") },
            word(&source["fired"]),
            word(&source["delivered"]),
            if rates.is_null() { "-".to_owned() } else { per_second(&rate(id).into()) },
        ]);
    }
    section(text, "Sources", &table, "none");
}

fn problems(text: &mut String, problems: &Value) {
    let problems = problems.as_array().map(Vec::as_slice).unwrap_or_default();
    if problems.is_empty() {
        return;
    }
    text.push_str("\nLatest problems\n");
    for problem in problems.iter().skip(problems.len().saturating_sub(PROBLEMS)) {
        let then = UNIX_EPOCH + Duration::from_millis(problem["unix_ms"].as_u64().unwrap_or(0));
        let ago = SystemTime::now().duration_since(then).unwrap_or_default();
        let _ = writeln!(
            text,
            "{} ago: {}: {}",
            lasting(ago),
            word(&problem["level"]),
            word(&problem["message"])
        );
    }
}

/// After `attach`.
pub(super) fn attached(answer: &Value) -> String {
    let vectors = &answer["vectors"];
    let event = if answer["event"] == true { ", sources can be allocated" } else { "" };
    format!(
        "function {}: {}, {} MSI and {} MSI-X vectors{event}\n",
        word(&answer["function"]),
        word(&answer["name"]),
        word(&vectors["msi"]),
        word(&vectors["msix"]),
    )
}

/// After `detach`.
pub(super) fn detached(answer: &Value) -> String {
    format!(
        "function {}: {} is the guest's no more, and {} sources of it ended\n",
        word(&answer["function"]),
        word(&answer["name"]),
        word(&answer["sources"]),
    )
}

/// After `drain`.
pub(super) fn drained(answer: &Value) -> String {
    let sources = word(&answer["sources"]);
    if answer["draining"] == true {
        format!("the guest gets no further source, and holds {sources}\n")
    } else {
        format!("the guest gets sources, and holds {sources}\n")
    }
}

/// By number: as text, 10 comes before 9.
fn in_order(map: &Map<String, Value>) -> Vec<(&str, &Value)> {
    let mut entries: Vec<_> = map.iter().map(|(id, value)| (id.as_str(), value)).collect();
    entries.sort_by_key(|(id, _)| id.parse::<u64>().unwrap_or(u64::MAX));
    entries
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table
}

fn section(text: &mut String, title: &str, table: &Table, nothing: &str) {
    if table.is_empty() {
        let _ = writeln!(text, "\n{title}: {nothing}");
    } else {
        let _ = writeln!(text, "\n{title}\n{}", table.trim_fmt());
    }
}

fn per_second(rate: &Value) -> String {
    match rate.as_f64() {
        None => "-".to_owned(),
        Some(rate) if rate >= 100.0 || rate == 0.0 => format!("{rate:.0}"),
        Some(rate) => format!("{rate:.1}"),
    }
}

fn lasting(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_rates_read_well() {
        let lasting = |seconds| super::lasting(Duration::from_secs(seconds));
        assert_eq!([59, 3599, 90_000].map(lasting), ["59 s", "59 min 59 s", "1 d 1 h"]);
        let rates = [0.0, 0.25, 99.94, 1234.5].map(|rate| per_second(&Value::from(rate)));
        assert_eq!(rates, ["0", "0.2", "99.9", "1234"]);
        assert_eq!(per_second(&Value::Null), "-");
    }
}
