// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `virtio-irq-guest`: asks a virtio-irq device what a guest would ask it, without a virtual machine.

mod cli;
mod error;
mod listen;
mod run;
mod show;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match run::run(&cli, &mut std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe that has seen enough is no failure.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("virtio-irq-guest: {}", show::chain(&error));
            ExitCode::FAILURE
        }
    }
}
