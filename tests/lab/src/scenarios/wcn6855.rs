// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the scenarios with the Wi-Fi card's model have in common.

use super::daemon::Daemon;
use super::functions::{WCN6855, guest_with, machine_with};
use super::kernels::{VIRTIO_IRQ, load, start_guest};
use super::vectors::names;
use super::{Common, SOON, Sabotage, Stand};
use crate::agent::Agent;
use crate::checks::Row;
use crate::companion::Companion;
use crate::error::{Error, Result};
use crate::host::{Host, RunningGuest};
use crate::machine::Machine;
use crate::modules;
use crate::msi::Pair;
use crate::wifi;
use std::path::PathBuf;
use std::time::Duration;
use virtio_irq_lab_agent::PAYLOAD;

/// The sample driver's module.
pub(super) const MODULE: &str = "virtio_irq_wcn6855";

/// Vectors of the card's MSI capability.
pub(super) const VECTORS: usize = 32;

/// What virtio-irq is to do for the card, however it does it.
pub(super) const COMMON: Common = Common {
    checks: &["works-after-power-down-and-up", "ath11k-powers-the-card-up"],
    sabotages: &[
        Sabotage {
            name: "power-stays-on",
            what: "the driver is not told to power the card down",
            fails: "works-after-power-down-and-up",
        },
        Sabotage {
            name: "no-firmware-file",
            what: "the guest's kernel looks for firmware in another place",
            fails: "ath11k-powers-the-card-up",
        },
    ],
};

/// What ath11k needs of the stock kernel, and itself.
const STOCK: &[&str] = &["qrtr", "ath11k_pci"];

/// The patched modules, in an order in which they load.
const PATCHED: &[&str] = &["ath11k", "ath11k_pci"];

/// The register of the model's test page that makes it tell nonsense.
const NONSENSE: usize = 0x1f_f020;

/// Devices go to sleep one after the other.
const SUSPEND: Duration = Duration::from_secs(30);

/// The card's rings in turn; the first that is not heard waits five seconds for a handler, those after it a third of one.
const FIRE: Duration = Duration::from_secs(120);

/// Boots a host with the card, and plays on it. Its guests have the drivers of the card in their boot image.
pub(super) fn on_host(
    stand: &mut Stand<'_>,
    name: &str,
    drivers: Option<&wifi::Drivers>,
    play: impl FnOnce(&mut Stand<'_>, &Host) -> Result<()>,
) -> Result<()> {
    on_machine(stand, name, machine_with(stand.iommu, &[WCN6855]), drivers, play)
}

/// As [`on_host`], on this machine that has the card.
pub(super) fn on_machine(
    stand: &mut Stand<'_>,
    name: &str,
    machine: Machine,
    drivers: Option<&wifi::Drivers>,
    play: impl FnOnce(&mut Stand<'_>, &Host) -> Result<()>,
) -> Result<()> {
    let machine = guest_files(stand, drivers)?.into_iter().fold(machine, Machine::guest_file);
    stand.on_machine(name, machine, &[WCN6855], play)
}

/// Starts the daemon with this value of `--device`, and a guest that it serves, which has the sample driver. `arguments` are
/// further ones of the guest's QEMU.
pub(super) fn served_guest(
    host: &Host,
    device: String,
    arguments: &[&str],
) -> Result<(Daemon, RunningGuest)> {
    served(host, ["daemon", "qemu"], device, arguments)
}

/// The same for the next daemon and the next guest on the host, with logs of their own.
pub(super) fn served_next(host: &Host, device: String) -> Result<(Daemon, RunningGuest)> {
    served(host, ["daemon-next", "qemu-next"], device, &[])
}

fn served(
    host: &Host,
    logs: [&str; 2],
    device: String,
    arguments: &[&str],
) -> Result<(Daemon, RunningGuest)> {
    let daemon = Daemon::start(host, logs[0], &[device])?;
    let guest = guest_with(&[WCN6855]).with(arguments.iter().map(|&argument| argument.to_owned()));
    let guest = start_guest(host, logs[1], &Daemon::serve(host, guest)?, &[VIRTIO_IRQ, MODULE])?;
    Ok((daemon, guest))
}

/// The card's vectors that the host has enabled.
pub(super) fn held_by_host(host: &Host) -> Result<usize> {
    Ok(names(&host.vfio_requested(WCN6855.host)?, "vfio-msi").len())
}

fn guest_files(stand: &Stand<'_>, drivers: Option<&wifi::Drivers>) -> Result<Vec<PathBuf>> {
    let mut files = vec![wifi::firmware(stand.layout)?.join("ath11k")];
    files.extend(modules::closure(stand.layout, STOCK)?);
    files.extend(drivers.map(|drivers| drivers.modules.clone()));
    Ok(files)
}

/// What QEMU adds for a guest with an IOMMU that remaps interrupts: its kernel gives out many MSI vectors.
pub(super) const IOMMU: [&str; 4] =
    ["-machine", "kernel-irqchip=split", "-device", "intel-iommu,intremap=on,caching-mode=on"];

/// What the patched ath11k logs.
pub(super) const TOLD: &str = "MSI message from host: address ";

/// The pair in ath11k's line.
pub(super) fn told(line: &str) -> Option<Pair> {
    let (address, data) = line.split_once(TOLD)?.1.split_once(" data ")?;
    let number = |text: &str| u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok();
    Some(Pair { address: number(address)?, data: u32::try_from(number(data)?).ok()? })
}

/// Where the guest's kernel finds the card's firmware.
const FIRMWARE: &str = PAYLOAD;

/// Loads ath11k and what it needs: Debian's, or the patched one.
pub(super) fn load_ath11k(stand: &Stand<'_>, guest: &RunningGuest, patched: bool) -> Result<()> {
    let firmware = if stand.sabotaged("no-firmware-file") { "/nowhere" } else { FIRMWARE };
    guest.agent().write("/sys/module/firmware_class/parameters/path", firmware)?;
    for module in modules::closure(stand.layout, STOCK)? {
        let name = module.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if !(patched && PATCHED.contains(&name.as_str())) {
            load(guest, &[&name])?;
        }
    }
    for name in PATCHED.iter().filter(|_| patched) {
        load(guest, &[&format!("modules/{name}")])?;
    }
    Ok(())
}

/// Takes the card from the driver that it has.
pub(super) fn unbind(guest: &Agent) -> Result<()> {
    guest.write(&WCN6855.in_guest("driver/unbind"), WCN6855.guest)
}

/// Gives the card to a driver.
pub(super) fn bind(guest: &Agent, name: &str) -> Result<()> {
    guest.write(&driver("bind", name), WCN6855.guest)
}

/// The real driver's name.
pub(super) const ATH11K: &str = "ath11k_pci";

/// A file of a driver.
pub(super) fn driver(file: &str, name: &str) -> String {
    format!("/sys/bus/pci/drivers/{name}/{file}")
}

/// Sends the guest to sleep, all but the firmware's part of it, and wakes it again: every device is suspended, and PCI functions
/// lose what they have of their configuration.
pub(super) fn suspend(guest: &Agent) -> Result<()> {
    // The kernel's own test (Documentation/power/basic-pm-debugging.rst), without its pause of five seconds.
    guest.write("/sys/module/suspend/parameters/pm_test_delay", "0")?;
    guest.write("/sys/power/pm_test", "core")?;
    guest.write("/sys/power/mem_sleep", "deep")?;
    guest.sleep("mem", SUSPEND)
}

/// Lets the model tell nonsense of this kind (`test_page::NONSENSE`), 0 for none. Nobody has its BAR meanwhile.
pub(super) fn talk_nonsense(guest: &Agent, kind: u32) -> Result<()> {
    guest.store(&WCN6855.in_guest("resource0"), NONSENSE, kind)
}

/// Waits until the driver has powered the card up.
pub(super) fn powered_up(host: &Host, mark: usize) -> Result<String> {
    let line = model(host)?.line(mark, "the card runs its firmware", SOON)?;
    Ok(line.split_once("the card").map_or_else(|| line.clone(), |(_, text)| format!("the card{text}")))
}

/// The card itself.
pub(super) fn model(host: &Host) -> Result<&Companion> {
    host.wifi_cards().first().ok_or_else(|| Error::Unexpected("the host has no card".into()))
}

/// Messages sent and handled, over all rings.
pub(super) fn sums(rings: &[Ring]) -> (u64, u64) {
    (rings.iter().map(|ring| ring.sent).sum(), rings.iter().map(|ring| ring.handled).sum())
}

/// A line of the table, for what rings sent that were programmed with the pair `written`.
pub(super) fn row(situation: &str, guest_pair: Pair, host_pair: Pair, written: Pair, rings: &[Ring]) -> Row {
    let (sent, handled) = sums(rings);
    Row {
        situation: situation.into(),
        function: WCN6855.guest.into(),
        vector: "MSI 0".into(),
        guest_pair: guest_pair.to_string(),
        host_pair: host_pair.to_string(),
        written: written.to_string(),
        sent,
        handled,
        outcome: match handled {
            0 => "never arrived",
            handled if handled == sent => "every one arrived",
            _ => "not as many as were sent",
        }
        .into(),
    }
}

/// The sample driver's view of the card.
pub(super) struct Rings<'a> {
    guest: &'a Agent,
}

/// One ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ring {
    /// The message in its registers.
    pub(super) programmed: Pair,
    /// The vector that the message is to raise.
    pub(super) vector: usize,
    /// How often it was told to send it.
    pub(super) sent: u64,
    /// How often the vector's handler ran then.
    pub(super) handled: u64,
}

impl<'a> Rings<'a> {
    pub(super) fn new(guest: &'a Agent) -> Self {
        Self { guest }
    }

    /// How many vectors the guest got for the card.
    pub(super) fn vectors(&self) -> Result<usize> {
        parse("vectors", &self.read("vectors")?)
    }

    /// The pair in the capability as the guest sees it.
    pub(super) fn guest_pair(&self) -> Result<Pair> {
        self.read("guest_pair")?.parse().map_err(Error::Unexpected)
    }

    /// Asks virtio-irq.
    pub(super) fn host_pair(&self) -> Result<Pair> {
        self.read("host_pair")?.parse().map_err(Error::Unexpected)
    }

    /// Powers the card down (`off`), or up with vectors of its own capability (`native`) or of virtio-irq (`event`), as
    /// ath11k does; the rings get their messages again.
    pub(super) fn power(&self, what: &str) -> Result<()> {
        self.guest.write(&attribute("power"), what)
    }

    /// Programs messages, `guest` or `host` ones, into all rings; the first gets that of vector `first`.
    pub(super) fn program(&self, whose: &str, first: usize) -> Result<()> {
        self.guest.write(&attribute("program"), &format!("{whose} {first}"))
    }

    /// Lets each ring in turn send its message, `count` times.
    pub(super) fn fire(&self, count: u64) -> Result<()> {
        self.guest.write_within(&attribute("fire"), &count.to_string(), FIRE)
    }

    /// All rings.
    pub(super) fn rings(&self) -> Result<Vec<Ring>> {
        let text = self.read("rings")?;
        let ring = |line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            let [pair, vector, sent, handled] = words[..] else {
                return Err(Error::Unexpected(format!("a ring reads {line:?}")));
            };
            Ok(Ring {
                programmed: pair.parse().map_err(Error::Unexpected)?,
                vector: parse("vector", vector)?,
                sent: parse("sent", sent)?,
                handled: parse("handled", handled)?,
            })
        };
        text.lines().map(ring).collect()
    }

    /// Runs of handlers that no ring was to cause.
    pub(super) fn strays(&self) -> Result<u64> {
        parse("strays", &self.read("strays")?)
    }

    /// Messages that the card wrote, and those that it could not.
    pub(super) fn messages(&self) -> Result<(u64, u64)> {
        let text = self.read("messages")?;
        let mut words = text.split(' ');
        let mut next = || parse("messages", words.next().unwrap_or_default());
        Ok((next()?, next()?))
    }

    fn read(&self, name: &str) -> Result<String> {
        self.guest.read(&attribute(name))
    }
}

fn attribute(name: &str) -> String {
    WCN6855.in_guest(&format!("{MODULE}/{name}"))
}

fn parse<T: std::str::FromStr>(what: &str, text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::Unexpected(format!("{what} reads {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn what_ath11k_was_told_is_read_from_its_line() {
        let line = "[ 1.2] ath11k_pci 0000:00:06.0: MSI message from host: address 0xfee00578 data 0x0";
        assert_eq!(told(line).unwrap().to_string(), "fee00578/0000");
        assert_eq!(told("MSI message from host: address fee00578"), None);
    }
}
