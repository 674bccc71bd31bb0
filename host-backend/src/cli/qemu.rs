// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `qemu-args`: what connects a VM to the daemon.

use clap::{Args, ValueEnum};
use std::io::{self, Write};
use virtio_irq_proto::{Config, DEVICE_ID, QUEUE_COUNT};

pub(super) const EXAMPLES: &str = "\
Examples:
  In a shell:
    eval qemu-system-x86_64 ... \\
        \"$(vhost-device-irq qemu-args --socket-path /run/irq.sock --memory 4G)\"

  From a program:
    vhost-device-irq qemu-args --socket-path /run/irq.sock --format json";

/// Options of `vhost-device-irq qemu-args`.
#[derive(Args, Clone, Debug)]
pub struct QemuArgs {
    /// Where the daemon listens
    #[arg(long, value_name = "PATH", value_parser = utf8_path)]
    socket_path: String,

    /// Memory of the VM, as QEMU's -m takes it (256M, 4G). It has to be shared with the daemon, so it is part of the
    /// options here: do not give QEMU a -m of its own
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = memory_size)]
    memory: String,

    /// Prefix of the QEMU objects' names
    #[arg(long, value_name = "NAME", default_value = "irq", value_parser = object_id)]
    id: String,

    /// How to print them
    #[arg(long, value_enum, default_value_t = ArgsFormat::Shell)]
    format: ArgsFormat,
}

/// How arguments are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArgsFormat {
    /// On one line, quoted for a POSIX shell
    Shell,
    /// One argument per line, unquoted
    Lines,
    /// A JSON array of strings
    Json,
}

impl QemuArgs {
    /// The arguments.
    ///
    /// The device is QEMU's own test device for vhost-user backends, which passes any virtio id through that QEMU
    /// has a name for. It takes the configuration space's size and the number of queues from its user.
    pub fn arguments(&self) -> Vec<String> {
        let Self { socket_path, memory, id, .. } = self;
        // A comma separates QEMU's options, two are one in a value.
        let path = socket_path.replace(',', ",,");
        let config_size = Config::SIZE;
        vec![
            "-object".to_owned(),
            format!("memory-backend-memfd,id={id}-memory,size={memory},share=on"),
            "-m".to_owned(),
            memory.clone(),
            "-machine".to_owned(),
            format!("memory-backend={id}-memory"),
            "-chardev".to_owned(),
            format!("socket,id={id}-socket,path={path}"),
            "-device".to_owned(),
            format!(
                "vhost-user-test-device-pci,id={id},chardev={id}-socket,virtio-id={DEVICE_ID},num_vqs={QUEUE_COUNT},\
                 config_size={config_size}"
            ),
        ]
    }

    pub(super) fn print(&self) -> io::Result<()> {
        let arguments = self.arguments();
        let text = match self.format {
            ArgsFormat::Shell => arguments.iter().map(|text| quote(text)).collect::<Vec<_>>().join(" "),
            ArgsFormat::Lines => arguments.join("\n"),
            ArgsFormat::Json => serde_json::to_string_pretty(&arguments)?,
        };
        writeln!(io::stdout(), "{text}")
    }
}

/// Quotes for a POSIX shell where it is needed.
fn quote(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./,=:+@".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn utf8_path(text: &str) -> Result<String, String> {
    match text {
        "" => Err("the path is empty".to_owned()),
        text if text.contains('\n') => Err("a path with a line break cannot be passed on".to_owned()),
        text => Ok(text.to_owned()),
    }
}

fn memory_size(text: &str) -> Result<String, String> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T', 'k', 'm', 'g', 't']);
    let valid = text.len() - digits.len() <= 1
        && !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && digits.bytes().any(|byte| byte != b'0');
    if valid {
        Ok(text.to_owned())
    } else {
        Err("write it as a number with K, M, G or T, such as 512M".to_owned())
    }
}

pub(super) fn object_id(text: &str) -> Result<String, String> {
    let valid = text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if valid { Ok(text.to_owned()) } else { Err("QEMU's names are letters, digits, -, . and _".to_owned()) }
}
