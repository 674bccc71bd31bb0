// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;
use virtio_irq_proto::{IrqType, PciAddress};

/// Ask a virtio-irq device what a guest would ask it.
///
/// Connects to the vhost-user socket of vhost-device-irq, plays VMM and guest, and prints what the device answers. The
/// device serves one frontend at a time: this program waits for its turn until --timeout, and a virtual machine that
/// uses the socket has to end first.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// Socket on which vhost-device-irq listens (its --socket-path)
    #[arg(short, long, value_name = "PATH")]
    pub(crate) socket_path: PathBuf,

    /// Print JSON, one document per command (watch: one per event, listen: one first and one per event)
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Greatest time that one operation may take
    #[arg(long, global = true, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(crate) timeout: Duration,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  Start a device that needs no hardware, in another terminal:
    vhost-device-irq --socket-path /tmp/irq.sock --device sim:wcn6855

  Which functions does it know?
    virtio-irq-guest --socket-path /tmp/irq.sock list

  Which message raises MSI vector 0 of its function?
    virtio-irq-guest --socket-path /tmp/irq.sock messages

  The block of 32 MSI vectors of the function that the guest sees at 00:06.0:
    virtio-irq-guest --socket-path /tmp/irq.sock block --address 00:06.0 --count 32

  Four interrupt sources of the function, with messages of their own:
    virtio-irq-guest --socket-path /tmp/irq.sock allocate --count 4

  The same, and count the interrupts that the device delivers for them:
    virtio-irq-guest --socket-path /tmp/irq.sock listen --count 4";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the functions that the device knows
    List,
    /// Print the message of each vector of a range
    ///
    /// A message is the pair that the host really programmed: writing DATA to ADDRESS raises the vector. The vector has to
    /// be enabled in the function's own capability first.
    Messages(Vectors),
    /// Print the block that a range of vectors forms: one address, and data that counts up
    ///
    /// Fails where the vectors do not form one.
    Block(Vectors),
    /// Allocate interrupt sources, print them, and give them back
    ///
    /// A source is a vector that the host enables for the guest and whose interrupts virtio-irq delivers: the guest enables
    /// nothing in the function's own capability. Writing DATA to ADDRESS raises it. The device gives as many as it can
    /// between --least and --count, or none. See `listen` for what then comes of them.
    Allocate(Sources),
    /// Allocate interrupt sources and count their interrupts
    ///
    /// Shows a row per source, whose count goes up while the function raises it: live on a terminal, otherwise at the end,
    /// with --json a line per interrupt and other event. Runs until it is interrupted, the device goes away, or a limit is
    /// reached. The sources end with the program. Simulated functions (sim:) raise no interrupts by themselves.
    Listen(Listen),
    /// Print what the device says unasked: messages that changed, functions that are gone
    ///
    /// Runs until it is interrupted, the device goes away, or the limit is reached.
    Watch(Watch),
}

#[derive(Debug, Args)]
pub(crate) struct Vectors {
    #[command(flatten)]
    pub(crate) function: Which,

    /// Kind of vectors
    #[arg(short = 't', long = "type", value_enum, default_value_t = Kind::Msi)]
    pub(crate) kind: Kind,

    /// First vector
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) first: u16,

    /// Number of vectors
    #[arg(short = 'n', long, value_name = "N", default_value = "1")]
    pub(crate) count: NonZeroU16,
}

/// Which function is meant. Without an option: the only one there is.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Which {
    /// Function with this id in the list
    #[arg(short, long, value_name = "ID")]
    pub(crate) function: Option<u16>,

    /// Function at this address in the guest, as 00:06.0 or 0000:00:06.0
    #[arg(short, long, value_name = "ADDRESS")]
    pub(crate) address: Option<PciAddress>,

    /// Function with these PCI ids, VENDOR:DEVICE in hexadecimal
    #[arg(short, long, value_name = "IDS", value_parser = pci_ids)]
    pub(crate) ids: Option<(u16, u16)>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Kind {
    Msi,
    Msix,
}

impl From<Kind> for IrqType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Msi => Self::Msi,
            Kind::Msix => Self::Msix,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Sources {
    #[command(flatten)]
    pub(crate) function: Which,

    /// Kind of vectors
    #[arg(short = 't', long = "type", value_enum, default_value_t = SourceKind::Msi)]
    pub(crate) kind: SourceKind,

    /// Greatest number of sources that is of use
    #[arg(short = 'n', long, value_name = "N", default_value = "1")]
    pub(crate) count: NonZeroU16,

    /// Least number of sources that is of use; --count without this
    #[arg(long, value_name = "N")]
    pub(crate) least: Option<NonZeroU16>,

    /// Least vector that is of use
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) first: u16,

    /// Only consecutive vectors with one address and data that counts up
    #[arg(long)]
    pub(crate) contiguous: bool,

    /// Ask again for this long while the VMM did not hand the function over yet, or its interrupts are in use
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) wait: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SourceKind {
    Msi,
    Msix,
    /// The pin: it has no message, and is unmasked after each interrupt
    Intx,
}

impl From<SourceKind> for IrqType {
    fn from(kind: SourceKind) -> Self {
        match kind {
            SourceKind::Msi => Self::Msi,
            SourceKind::Msix => Self::Msix,
            SourceKind::Intx => Self::Intx,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Listen {
    #[command(flatten)]
    pub(crate) sources: Sources,

    /// Leave after this many interrupts
    #[arg(long, value_name = "N")]
    pub(crate) interrupts: Option<u64>,

    /// Leave after this time
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) duration: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Leave after this many events
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) count: Option<u64>,

    /// Leave after this time
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) duration: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "not a number of seconds, such as 5 or 0.5".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() && duration <= Duration::from_secs(u32::MAX.into()) => {
            Ok(duration)
        }
        _ => Err("must be more than 0 and less than a hundred years".to_owned()),
    }
}

fn pci_ids(text: &str) -> Result<(u16, u16), String> {
    let parse = || {
        let (vendor, device) = text.split_once(':')?;
        Some((hex(vendor, 4)?, hex(device, 4)?))
    };
    parse().ok_or_else(|| "not PCI ids, such as 17cb:1103".to_owned())
}

/// A hexadecimal number of at most `digits` digits, without a sign.
fn hex(text: &str, digits: usize) -> Option<u16> {
    let well_formed = text.len() <= digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    well_formed.then(|| u16::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ids_are_read_as_lspci_prints_them() {
        assert_eq!(pci_ids("17cb:1103"), Ok((0x17cb, 0x1103)));
        for wrong in ["", "17cb", "17cb:", ":1103", "17cb:11030", "17cb:-103", "17cb:1103:0"] {
            assert!(pci_ids(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_time_is_more_than_nothing() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for wrong in ["", "0", "-1", "NaN", "inf", "1e300", "five"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
