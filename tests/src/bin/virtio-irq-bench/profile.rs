// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the daemon's time goes, by `perf`: which system calls it makes, and how much of its time is the kernel's.

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const CALLS: &str = "syscalls:sys_enter_";

/// What the process did during each of `count` runs of `work`. Null where `perf` is missing or may not look.
pub(crate) fn measure(process: u32, count: u32, mut work: impl FnMut()) -> Value {
    let mut works = || (0..count).for_each(|_| work());
    let looked = system_calls(process, count, &mut works)
        .and_then(|calls| Ok(json!({ "system_calls": calls, "time": time(process, &mut works)? })));
    looked.unwrap_or_else(|error| {
        eprintln!("perf does not tell where the daemon's time goes: {error}");
        Value::Null
    })
}

/// How often each system call was made in one run.
fn system_calls(process: u32, count: u32, work: &mut dyn FnMut()) -> io::Result<Map<String, Value>> {
    let names = ["epoll_wait", "epoll_pwait", "poll", "ppoll", "read", "write", "futex"];
    let events = names.map(|name| format!("{CALLS}{name}")).join(",");
    let output = under(&["stat", "-x", ",", "-e", &events], process, work)?;
    let counts = String::from_utf8_lossy(&output.stderr).into_owned();
    let made = counts.lines().filter_map(|line| {
        let mut fields = line.split(',');
        let (number, name) = (fields.next()?.parse::<f64>().ok()?, fields.nth(1)?.strip_prefix(CALLS)?);
        (number > 0.0).then(|| (name.to_owned(), json!(number / f64::from(count))))
    });
    let made: Map<_, _> = made.collect();
    if made.is_empty() { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(made) }
}

/// Shares of the process's time: the kernel, the program, and its libraries.
fn time(process: u32, work: &mut dyn FnMut()) -> io::Result<BTreeMap<String, f64>> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("perf.data");
    let data = data.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    under(&["record", "-q", "-F", "9973", "-e", "cpu-clock", "-o", data], process, work)?;
    let mut report = Command::new("perf");
    report.args(["report", "-q", "-i", data, "--stdio", "-F", "overhead,dso", "-t", ","]);
    let output = report.stdin(Stdio::null()).output()?;
    let mut shares = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((share, object)) = line.split_once(',') else { continue };
        let share = share.trim().trim_end_matches('%');
        let whose = match object.trim() {
            "[kernel.kallsyms]" | "[kernel]" => "kernel",
            "vhost-device-irq" => "daemon",
            _ => "libraries",
        };
        *shares.entry(whose.to_owned()).or_default() += share.parse::<f64>().unwrap_or(0.0);
    }
    if shares.is_empty() { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(shares) }
}

/// Runs `work` while `perf` looks at the process.
fn under(arguments: &[&str], process: u32, work: &mut dyn FnMut()) -> io::Result<Output> {
    let directory = tempfile::tempdir()?;
    let [orders, answers] = ["orders", "answers"].map(|name| directory.path().join(name));
    for path in [&orders, &answers] {
        mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    }
    // Open for both, or the first of the two processes would wait for the other, which may not even start.
    let open = |path: &Path| File::options().read(true).write(true).open(path);
    let (mut order, answer) = (open(&orders)?, open(&answers)?);
    let mut perf = Command::new("perf");
    perf.args(arguments).args(["-p", &process.to_string(), "-D", "-1"]);
    perf.arg(format!("--control=fifo:{},{}", orders.display(), answers.display()));
    let perf = perf.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    order.write_all(b"enable\n")?;
    let process = Pid::from_child(&perf);
    let ended = pidfd_open(process, PidfdFlags::empty())?;
    poll(&mut [PollFd::new(&answer, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)], None)?;
    work();
    // It fails for one that has ended, which its output tells.
    let _ = kill_process(process, Signal::INT);
    perf.wait_with_output()
}
