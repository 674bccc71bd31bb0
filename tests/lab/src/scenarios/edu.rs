// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sample driver in a guest, by its sysfs attributes.

use crate::agent::Agent;
use crate::error::{Error, Result};
use crate::msi::Pair;
use std::time::Duration;

/// The longest that firing may take: the driver waits up to 500 ms for each interrupt.
const FIRE: Duration = Duration::from_secs(90);

/// The sample driver's view of one edu function.
pub(super) struct Edu<'a> {
    guest: &'a Agent,
    function: &'a str,
}

impl<'a> Edu<'a> {
    pub(super) fn new(guest: &'a Agent, function: &'a str) -> Self {
        Self { guest, function }
    }

    /// Gives the function's interrupt back, or takes it.
    pub(super) fn enable_msi(&self, enable: bool) -> Result<()> {
        self.guest.write(&self.attribute("msi"), if enable { "1" } else { "0" })
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
        let attribute = self.attribute("program");
        self.guest.write(&attribute, what)?;
        parse(&self.guest.read(&attribute)?)
    }

    /// Lets the device send `count` interrupts, one after the other, and returns how often the handler ran.
    pub(super) fn fire(&self, count: u64) -> Result<u64> {
        let before = self.handled()?;
        self.guest.write_within(&self.attribute("fire"), &count.to_string(), FIRE)?;
        Ok(self.handled()?.wrapping_sub(before))
    }

    fn handled(&self) -> Result<u64> {
        let text = self.guest.read(&self.attribute("handled"))?;
        text.parse().map_err(|_| Error::Unexpected(format!("handled reads {text:?}")))
    }

    fn attribute(&self, name: &str) -> String {
        format!("/sys/bus/pci/devices/{}/virtio_irq_edu/{name}", self.function)
    }
}

fn parse(text: &str) -> Result<Pair> {
    text.parse().map_err(Error::Unexpected)
}
