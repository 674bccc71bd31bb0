// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon `vhost-device-irq`.

use clap::Parser;
use std::process::ExitCode;
use vhost_device_irq::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("vhost-device-irq: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
