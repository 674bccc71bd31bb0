// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sample driver for edu in a guest, by its sysfs attributes.

use super::functions::EDU;
use super::vectors::until;
use super::{Common, Sabotage};
use crate::agent::Agent;
use crate::checks::{Row, Verdict, expect};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::interrupts;
use crate::msi::Pair;
use std::fmt;
use std::time::Duration;

/// The longest that firing may take: the driver waits up to 500 ms for each interrupt.
const FIRE: Duration = Duration::from_secs(90);

/// That as many interrupts are handled as edu sends.
pub(super) const EVERY_ONE: Common = Common {
    checks: &["each-interrupt-runs-the-handler-once"],
    sabotages: &[
        Sabotage {
            name: "lost-interrupt",
            what: "the device sends one interrupt less than counted",
            fails: "each-interrupt-runs-the-handler-once",
        },
        Sabotage {
            name: "doubled-interrupt",
            what: "the device sends one interrupt more than counted",
            fails: "each-interrupt-runs-the-handler-once",
        },
    ],
};

/// The sample driver's view of its function.
pub(super) struct Edu<'a> {
    guest: &'a Agent,
}

impl<'a> Edu<'a> {
    pub(super) fn new(guest: &'a Agent) -> Self {
        Self { guest }
    }

    /// Gives the function's interrupt back, or takes it.
    pub(super) fn enable_msi(&self, enable: bool) -> Result<()> {
        self.guest.write(&self.attribute("msi"), if enable { "1" } else { "0" })
    }

    /// Whether the guest's own MSI is on.
    pub(super) fn own_msi_enabled(&self) -> Result<bool> {
        Ok(self.guest.read(&self.attribute("msi"))? == "1")
    }

    /// Lets virtio-irq allocate the function's vector, or frees it.
    pub(super) fn allocate_source(&self, allocate: bool) -> Result<()> {
        self.guest.write(&self.attribute("source"), if allocate { "1" } else { "0" })
    }

    /// Masks the function's interrupt, or unmasks it.
    pub(super) fn mask(&self, mask: bool) -> Result<()> {
        self.guest.write(&self.attribute("masked"), if mask { "1" } else { "0" })
    }

    /// The pair in the capability as the guest sees it.
    pub(super) fn guest_pair(&self) -> Result<Pair> {
        parse(&self.guest.read(&self.attribute("guest_pair"))?)
    }

    /// Asks virtio-irq. The pair and its generation.
    pub(super) fn host_pair(&self) -> Result<(Pair, u64)> {
        let answer = self.guest.read(&self.attribute("host_pair"))?;
        let split =
            answer.split_once(' ').and_then(|(pair, generation)| Some((pair, generation.parse().ok()?)));
        let (pair, generation) =
            split.ok_or_else(|| Error::Unexpected(format!("host_pair reads {answer:?}")))?;
        Ok((parse(pair)?, generation))
    }

    /// What the device is to write: `guest`, `host` (the driver asks virtio-irq) or a pair.
    pub(super) fn program(&self, what: &str) -> Result<Pair> {
        self.guest.write(&self.attribute("program"), what)?;
        self.programmed()
    }

    /// What the device writes.
    pub(super) fn programmed(&self) -> Result<Pair> {
        parse(&self.guest.read(&self.attribute("program"))?)
    }

    /// Lets the device send `count` interrupts, one after the other, and waits until the handler has run `expected` times. Returns
    /// how often it has, also when that took too long.
    pub(super) fn fire(&self, count: u64, expected: u64) -> Result<u64> {
        let before = self.handled()?;
        self.guest.write_within(&self.attribute("fire"), &count.to_string(), FIRE)?;
        // The driver waits half a second at most for each, which on a busy machine can be too short.
        Ok(self.handled_reaching(before.wrapping_add(expected))?.wrapping_sub(before))
    }

    /// How often the driver's handler has run.
    pub(super) fn handled(&self) -> Result<u64> {
        let text = self.guest.read(&self.attribute("handled"))?;
        text.parse().map_err(|_| Error::Unexpected(format!("handled reads {text:?}")))
    }

    /// Waits until the driver's handler has run `least` times or more, and returns how often it has, also when that took too long.
    pub(super) fn handled_reaching(&self, least: u64) -> Result<u64> {
        until(|handled| *handled >= least, || self.handled())
    }

    fn attribute(&self, name: &str) -> String {
        EDU.in_guest(&format!("virtio_irq_edu/{name}"))
    }
}

/// The device sends interrupts, and everything that counts them is read.
#[derive(Default)]
pub(super) struct Shot {
    guest_pair: Option<Pair>,
    host_pair: Option<Pair>,
    written: Option<Pair>,
    sent: u64,
    pub(super) handled: u64,
    guest_count: u64,
    host_count: u64,
}

impl Shot {
    /// Programs `what` into the device, which sends `sent` interrupts; the handler is waited for until it has run `expected` times.
    pub(super) fn take(
        &mut self,
        host: &Host,
        guest: &Agent,
        what: &str,
        sent: u64,
        expected: u64,
    ) -> Result<()> {
        let edu = Edu::new(guest);
        self.guest_pair = Some(edu.guest_pair()?);
        self.written = Some(edu.program(what)?);
        self.host_pair = Some(host.msi(EDU.host)?.pair);
        let (host_before, guest_before) = (host.vfio_interrupts(EDU.host)?, guest_interrupts(guest)?);
        self.sent = sent;
        self.handled = edu.fire(sent, expected)?;
        self.host_count = host.vfio_interrupts(EDU.host)?.wrapping_sub(host_before);
        self.guest_count = guest_interrupts(guest)?.wrapping_sub(guest_before);
        Ok(())
    }

    /// As [`Shot::take`]; and `counted` interrupts must have arrived by everyone's count, with the pair that the host has.
    pub(super) fn arrive(
        &mut self,
        host: &Host,
        guest: &Agent,
        what: &str,
        sent: u64,
        counted: u64,
    ) -> Verdict {
        self.take(host, guest, what, sent, counted)?;
        let counts = [self.handled, self.guest_count, self.host_count];
        let seen = format!("{self}; {counted} expected");
        expect(self.written == self.host_pair && counts.iter().all(|count| *count == counted), seen)
    }

    pub(super) fn row(&self, situation: &str) -> Row {
        Row {
            situation: situation.into(),
            function: EDU.guest.into(),
            vector: "MSI 0".into(),
            guest_pair: shown(self.guest_pair),
            host_pair: shown(self.host_pair),
            written: shown(self.written),
            sent: self.sent,
            handled: self.handled,
            outcome: Row::outcome(self.sent, self.handled),
        }
    }
}

impl fmt::Display for Shot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, handled, guest_count, host_count, .. } = self;
        let written = shown(self.written);
        write!(
            f,
            "{written} written {sent} times; handler ran {handled}, guest counted {guest_count}, host {host_count}"
        )
    }
}

fn shown(pair: Option<Pair>) -> String {
    pair.map_or_else(|| "-".to_owned(), |pair| pair.to_string())
}

fn guest_interrupts(guest: &Agent) -> Result<u64> {
    Ok(interrupts(&guest.read("/proc/interrupts")?, "virtio_irq_edu"))
}

fn parse(text: &str) -> Result<Pair> {
    text.parse().map_err(Error::Unexpected)
}
