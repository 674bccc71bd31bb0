// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program `virtio-irq-wcn6855`.

use clap::Parser;
use std::process::ExitCode;
use virtio_irq_wcn6855::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("virtio-irq-wcn6855: {error}");
            ExitCode::FAILURE
        }
    }
}
