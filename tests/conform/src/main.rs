// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `virtio-irq-conform`: does the device at this socket do what the specification says?

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use virtio_irq_conform::{Command, Nothing, Provoke, check};

/// Say of each device requirement of the virtio-irq specification whether the device at a vhost-user socket holds it,
/// breaks it, or does not let it be seen.
///
/// The checker is the frontend and the guest in one: it connects, lays out rings in memory of its own, and speaks to the
/// device as drivers do and as they are not allowed to. Nothing else is to be connected, and the device gets a connection
/// for each check, one after another. It needs no root, no VMM and no hardware.
#[derive(Debug, Parser)]
#[command(version, after_long_help = EXAMPLES)]
struct Cli {
    /// Unix socket at which the device waits for frontends
    #[arg(long, value_name = "PATH")]
    socket_path: PathBuf,

    /// Program that makes things happen on the device's host
    #[arg(long, value_name = "PROGRAM", long_help = PROVOKE_HELP)]
    provoke: Option<PathBuf>,

    /// Seconds that the device may take for one answer or event
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,

    /// List held requirements too
    #[arg(long, conflicts_with = "json")]
    all: bool,

    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

const PROVOKE_HELP: &str = "\
Program that makes things happen on the device's host

Most of event delivery is seen only when interrupts fire. The program gets one of these as its arguments:
  raise FUNCTION VECTOR  the function raises that vector, of the type of its sources
  move FUNCTION          the host programs other messages for the function
  take FUNCTION          the VMM takes the interrupts of its sources
  fail FUNCTION          the next thing that the host has to do for it fails
  remove FUNCTION        the function leaves the host; the last checks use up six
FUNCTION is an id of the device's list. The program exits with 0 when that has happened, 3 if it cannot make that \
happen, and anything else if it failed.";

const EXAMPLES: &str = "\
Examples:
  The device of this project, with simulated functions:
    vhost-device-irq --socket-path /tmp/irq.sock --device sim:wcn6855 --device sim:igb &
    virtio-irq-conform --socket-path /tmp/irq.sock

  Any other device, with a script that raises interrupts of it:
    virtio-irq-conform --socket-path /tmp/other.sock --provoke ./raise.sh --all

What it prints:
  held            the check found nothing wrong
  BROKEN          the device does something else; the bytes of the exchange follow the table
  not observable  this cannot be seen from outside, or not of this device; the reason is told

Exit codes:
  0  no requirement is broken
  1  at least one is, or the device cannot be used, or not any more
  2  the command line is wrong";

fn main() -> ExitCode {
    let cli = Cli::parse();
    let host: Box<dyn Provoke> = match cli.provoke {
        Some(program) => Box::new(Command(program)),
        None => Box::new(Nothing),
    };
    let report = check(&cli.socket_path, Duration::from_secs(cli.timeout), host.as_ref());
    if cli.json {
        println!("{:#}", report.json());
    } else {
        let [held, broken, unseen] = report.counts();
        print!("{}", report.table(cli.all));
        print!("{}", report.details());
        println!("\n{held} held, {broken} broken, {unseen} not observable");
    }
    if let Some(why) = &report.lost {
        eprintln!("virtio-irq-conform: {}: {why}", cli.socket_path.display());
    }
    if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
