// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ctl`: the client of the control socket.

mod connection;
mod screen;
mod show;

pub use connection::CtlError;

use crate::control::patch;
use crate::log::LogLevel;
use crate::qmp;
use clap::{Args, Subcommand};
use connection::Connection;
use serde_json::{Map, Value, json};
use show::Order;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Options of `vhost-device-irq ctl`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = HELP)]
pub struct CtlArgs {
    /// Where the daemon's --control-socket is [default: the one that is below /run/vhost-device-irq]
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,

    /// Print JSON, as the daemon sends it
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

const HELP: &str = "\
Examples:
  What there is, and what happens now:
    vhost-device-irq ctl status
    vhost-device-irq ctl watch --interval 0.5

  Of several daemons, or one that was not started by systemd:
    vhost-device-irq ctl --socket /run/irq.ctl status

  Give a running guest a function that was hot-plugged into it at 00:07.0, and take it away before it is unplugged:
    vhost-device-irq ctl attach 0000:03:00.0,guest=00:07.0
    vhost-device-irq ctl detach 0000:03:00.0

  The same for all functions that a QEMU was started with, which says where they are and who it is:
    vhost-device-irq ctl attach --qmp /run/qmp.sock

  Let the guest run out of sources, and wait for that:
    vhost-device-irq ctl drain --wait

  Know why something fails, then be quiet again:
    vhost-device-irq ctl log-level debug
    vhost-device-irq ctl log-level info

  For programs:
    vhost-device-irq ctl --json status
    vhost-device-irq ctl --json watch --count 10
    curl --unix-socket /run/irq.ctl http://localhost/metrics

Exit codes:
  0  done
  1  the daemon cannot be asked; the message says why and what to do
  2  the command line is wrong
  3  the daemon refuses; the message says why and what to do";

const STATUS_HELP: &str = "\
How to read it:
  Functions
    STATE    present; or gone: it left the host or was detached, and the guest's driver was told
    FLAGS    isolated: the IOMMU lets it raise no interrupts but its own. stable: its messages do not move.
             native: its messages are told. event: its vectors can be allocated as sources
  Messages
    What the guest's driver was told, block by block. GENERATION counts up when a message moved
  Sources
    STATE    ready; masked by the driver; pending: it fired and waits for an event buffer, or to be unmasked;
             held back by --source-rate-limit; revoked: the VMM or the guest took the interrupts away
    FIRED    how often it was found to have fired. What comes faster than it is looked for counts once
    DELIVERED  how often the driver was told";

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Show the frontend, the functions, their sources and messages, what was counted and what went wrong
    #[command(after_long_help = STATUS_HELP)]
    Status,

    /// Show it live, with rates a second, the busiest sources first, until interrupted. Not on a terminal: a line each time
    Watch {
        /// Seconds between two looks, 0.1 to 60
        #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
        interval: f64,

        /// End after N looks
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },

    /// Give the guest another function. Its driver finds it when it looks at the list of functions the next time
    Attach {
        /// The function, as --device of the daemon has it
        #[arg(value_name = "SPEC", required_unless_present = "qmp")]
        device: Option<String>,

        /// All functions that are assigned to the guest of the QEMU whose QMP socket this is, with what QEMU says of them: where
        /// the guest sees them, and the process to have their VFIO devices from
        #[arg(long, value_name = "PATH", conflicts_with = "device")]
        qmp: Option<PathBuf>,
    },

    /// Take a function away from the guest, with all sources of it. Its driver is told
    Detach {
        /// Its id, or its address on the host
        #[arg(value_name = "ID|ADDRESS")]
        function: String,
    },

    /// Give the guest no further sources; those that it holds stay
    Drain {
        /// Give it sources again
        #[arg(long)]
        off: bool,

        /// Wait until it holds none
        #[arg(long, conflicts_with = "off")]
        wait: bool,
    },

    /// Say how much the daemon logs, and change it
    LogLevel {
        /// The new level
        #[arg(value_enum)]
        level: Option<LogLevel>,
    },
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    if (0.1..=60.0).contains(&seconds) { Ok(seconds) } else { Err("it is not from 0.1 to 60".to_owned()) }
}

impl CtlArgs {
    /// Asks the daemon, and prints what it says.
    ///
    /// # Errors
    /// One sentence for the operator.
    pub fn run(&self) -> Result<(), CtlError> {
        let socket = self.socket.clone().map_or_else(connection::find, Ok)?;
        let mut daemon = Connection::open(&socket)?;
        match &self.command {
            Command::Status => {
                let answer = daemon.ask("status", Value::Null)?;
                let text =
                    |answer: &Value| show::status(object(answer.get("status")), &answer["rates"], Order::Id);
                self.print(&answer, text)
            }
            Command::Watch { interval, count } => self.watch(&mut daemon, *interval, *count),
            Command::Attach { device, qmp } => {
                let specs = match qmp {
                    Some(path) => assigned(path)?,
                    None => device.iter().cloned().collect(),
                };
                // One that is refused, for being there already perhaps, keeps none of the others away.
                let attach = |spec| {
                    let answer = daemon.ask("attach", json!({ "device": spec }))?;
                    self.print(&answer, show::attached)
                };
                let results: Vec<_> = specs.into_iter().map(attach).collect();
                results.into_iter().collect()
            }
            Command::Detach { function } => {
                let id = function.parse::<u16>().map_or_else(|_| json!(full_name(function)), |id| json!(id));
                let answer = daemon.ask("detach", json!({ "function": id }))?;
                self.print(&answer, show::detached)
            }
            Command::Drain { off, wait } => {
                let answer = daemon.ask("drain", json!({ "on": !off }))?;
                self.print(&answer, show::drained)?;
                if *wait { self.wait_until_drained(&mut daemon) } else { Ok(()) }
            }
            Command::LogLevel { level } => {
                let arguments = level.map_or(Value::Null, |level| json!({ "level": level.name() }));
                let answer = daemon.ask("log-level", arguments)?;
                self.print(&answer, |answer| format!("{}\n", show::word(&answer["level"])))
            }
        }
    }

    fn print(&self, answer: &Value, text: impl FnOnce(&Value) -> String) -> Result<(), CtlError> {
        let text = if self.json { format!("{answer}\n") } else { text(answer) };
        write_out(&text)
    }

    fn watch(&self, daemon: &mut Connection, interval: f64, count: Option<u64>) -> Result<(), CtlError> {
        // From 100 to 60000, see `seconds`.
        let mut watch = Watch::begin(daemon, (interval * 1000.0).round() as u64)?;
        let how = match (self.json, io::stdout().is_terminal()) {
            (true, _) => How::Json,
            (false, true) => How::Screen,
            (false, false) => How::Lines,
        };
        // There are no rates yet, which is why it is no look, and no line.
        let mut looks = 0;
        match how {
            How::Json => write_out(&watch.json())?,
            How::Screen => write_out(&screen::redraw(&watch.text(), true))?,
            How::Lines => {}
        }
        while count.is_none_or(|count| looks < count) {
            watch.next()?;
            looks += 1;
            let text = match how {
                How::Json => watch.json(),
                How::Screen => screen::redraw(&watch.text(), false),
                How::Lines => show::line(&watch.status, &watch.rates),
            };
            match write_out(&text) {
                // Whoever read it has enough.
                Err(CtlError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                result => result?,
            }
        }
        Ok(())
    }

    fn wait_until_drained(&self, daemon: &mut Connection) -> Result<(), CtlError> {
        let mut watch = Watch::begin(daemon, 200)?;
        while watch.status["counts"]["sources"] != 0 {
            watch.next()?;
        }
        Ok(())
    }
}

/// What `watch` prints each time.
#[derive(Clone, Copy, Debug)]
enum How {
    /// What the daemon sent.
    Json,
    /// Everything, in the place of what was there.
    Screen,
    /// One line.
    Lines,
}

/// The daemon's status, kept up to date.
struct Watch<'a> {
    daemon: &'a mut Connection,
    /// What came last.
    line: Map<String, Value>,
    status: Map<String, Value>,
    rates: Value,
}

impl<'a> Watch<'a> {
    fn begin(daemon: &'a mut Connection, interval_ms: u64) -> Result<Self, CtlError> {
        daemon.ask("watch", json!({ "interval_ms": interval_ms }))?;
        daemon.wait_forever()?;
        let line = daemon.next()?;
        let status = object(line.get("status")).clone();
        Ok(Self { daemon, line, status, rates: Value::Null })
    }

    fn text(&self) -> String {
        show::status(&self.status, &self.rates, Order::Busy)
    }

    fn json(&self) -> String {
        format!("{}\n", Value::Object(self.line.clone()))
    }

    fn next(&mut self) -> Result<(), CtlError> {
        self.line = self.daemon.next()?;
        patch::apply(&mut self.status, object(self.line.get("patch")).clone());
        self.rates = self.line.get("rates").cloned().unwrap_or(Value::Null);
        Ok(())
    }
}

/// An object, or an empty one where there is none.
fn object(value: Option<&Value>) -> &Map<String, Value> {
    static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    value.and_then(Value::as_object).unwrap_or(&NONE)
}

/// The functions that a QEMU has assigned, as `attach` takes them.
fn assigned(path: &Path) -> Result<Vec<String>, CtlError> {
    let vmm = qmp::ask(path, None)?;
    if vmm.functions.is_empty() {
        return Err(CtlError::NothingAssigned { path: path.to_owned() });
    }
    Ok(vmm.functions.iter().map(|function| function.spec(vmm.pid)).collect())
}

/// The address of a function as the daemon has it; other names as they are.
fn full_name(text: &str) -> String {
    text.parse::<virtio_irq_proto::PciAddress>()
        .map_or_else(|_| text.to_owned(), |address| address.to_string())
}

fn write_out(text: &str) -> Result<(), CtlError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CtlError::Print)
}
