// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernels of a scenario: that they are what it needs, and well at its end.

use super::functions::Function;
use super::{Sabotage, Stand, text_of};
use crate::agent::Agent;
use crate::checks::expect;
use crate::error::{Error, Result};
use crate::host::{Host, RunningGuest};
use std::path::PathBuf;
use std::time::Duration;
use virtio_irq_lab_agent::{End, Operation};

/// What a kernel logs when something is wrong with it; the last two are VT-d's and AMD-Vi's faults.
const TROUBLE: &[&str] =
    &["WARNING:", "BUG:", "Oops", "Kernel panic", "Call Trace:", "fault reason", "Event logged"];

/// The guest's module. It waits longer for the host than by itself, and less long than the lab does for the guest: how long a request
/// takes on a machine that has other things to do too is not what a scenario is about.
pub(super) const VIRTIO_IRQ: &str = "virtio_irq timeout_ms=30000";

/// The sabotage of [`host_is_well`].
pub(super) const HOST_WARNS: Sabotage = Sabotage {
    name: "host-warns",
    what: "a line that looks like a kernel warning is written to the host's log",
    fails: "host-kernel-is-well",
};

/// Enough for a guest's kernel to panic and start again.
const RESTART: Duration = Duration::from_secs(150);

/// The ground that everything stands on, check `host-remaps-interrupts`: without remapping there would be no fiction to see
/// through. The functions belong to vfio-pci after it.
pub(super) fn host_is_fit(stand: &mut Stand<'_>, host: &Host, functions: &[Function]) -> Result<()> {
    let (agent, remaps) = (host.agent(), stand.iommu.remaps);
    stand.report.check("host-remaps-interrupts", &agent.kernel_log(), || {
        agent.catch_up_with_kernel()?;
        let remapping = agent.kernel_lines(&[remaps]);
        let mut seen = text_of(remapping.first().map_or("no interrupt remapping", String::as_str)).to_owned();
        let mut all = !remapping.is_empty();
        for Function { host: function, .. } in functions {
            host.bind_to_vfio(function)?;
            let driver = agent.link(&format!("/sys/bus/pci/devices/{function}/driver"))?;
            let group = agent.link(&format!("/sys/bus/pci/devices/{function}/iommu_group"))?;
            seen.push_str(&format!("; {function} has driver {driver}, IOMMU group {group}"));
            all &= driver == "vfio-pci";
        }
        expect(all, seen)
    })
}

/// Starts a guest and loads modules in it.
pub(super) fn start_guest(
    host: &Host,
    name: &str,
    guest: &crate::machine::Guest,
    modules: &[&str],
) -> Result<RunningGuest> {
    let guest = host.start_guest(name, guest)?;
    load(&guest, modules)?;
    Ok(guest)
}

/// Loads modules in a guest; parameters follow the name.
pub(super) fn load(guest: &RunningGuest, modules: &[&str]) -> Result<()> {
    load_in(guest.agent(), modules)
}

/// As [`load`], in any machine.
pub(super) fn load_in(agent: &Agent, modules: &[&str]) -> Result<()> {
    let load = |module: &&str| {
        let (name, parameters) = module.split_once(' ').unwrap_or((module, ""));
        let operation = Operation::LoadModule { name: name.to_owned(), parameters: parameters.to_owned() };
        agent.perform(operation)
    };
    modules.iter().try_for_each(load)
}

/// Unloads modules that [`load`] loaded, the last first.
pub(super) fn unload(guest: &RunningGuest, modules: &[&str]) -> Result<()> {
    unload_in(guest.agent(), modules)
}

/// As [`unload`], in any machine.
pub(super) fn unload_in(agent: &Agent, modules: &[&str]) -> Result<()> {
    let unload = |module: &&str| {
        let name = module.split(' ').next().unwrap_or(module).to_owned();
        agent.perform(Operation::UnloadModule { name })
    };
    modules.iter().rev().try_for_each(unload)
}

/// A guest's virtio-irq driver, and the device that it has.
pub(super) struct Driver<'a> {
    guest: &'a Agent,
    pub(super) device: String,
}

impl<'a> Driver<'a> {
    const DIRECTORY: &'static str = "/sys/bus/virtio/drivers/virtio_irq";

    /// Looks which device it has.
    pub(super) fn find(guest: &'a Agent) -> Result<Self> {
        let bound = guest.list(Self::DIRECTORY)?;
        let device = bound.into_iter().find(|name| name.starts_with("virtio") && name != "virtio_irq");
        let device = device.ok_or_else(|| Error::Unexpected(format!("{} has no device", Self::DIRECTORY)))?;
        Ok(Self { guest, device })
    }

    /// Takes the device from it.
    pub(super) fn unbind(&self) -> Result<()> {
        self.guest.write(&format!("{}/unbind", Self::DIRECTORY), &self.device)
    }

    /// Gives the device back.
    pub(super) fn bind(&self) -> Result<()> {
        self.guest.write(&format!("{}/bind", Self::DIRECTORY), &self.device)
    }
}

/// Switches a guest off; its QEMU has to leave in good order.
pub(super) fn power_off(guest: RunningGuest) -> Result<()> {
    let log: PathBuf = guest.qemu().log();
    match guest.power_off()? {
        End::Code(0) => Ok(()),
        end => Err(Error::Gone { machine: "the guest's QEMU".into(), why: end.to_string(), log }),
    }
}

/// The check `guest-kernel-is-well`, and its sabotage `guest-warns`. Any warning would have been a panic and so a start of a
/// guest; `planned` is how many starts there should have been on its channel.
pub(super) fn guest_is_well(stand: &mut Stand<'_>, guest: &RunningGuest, planned: usize) -> Result<()> {
    let agent = guest.agent();
    if stand.sabotaged("guest-warns") {
        agent.tell(Operation::Write { path: "/proc/sysrq-trigger".into(), data: "c".into() })?;
        // Its panic is a reboot, and that is what has to be seen.
        agent.started(agent.start_count() + 1, RESTART)?;
    }
    stand.report.check("guest-kernel-is-well", &agent.kernel_log(), || {
        agent.catch_up_with_kernel()?;
        let starts = agent.start_count();
        let trouble = agent.kernel_lines(TROUBLE);
        let seen = match trouble.first() {
            Some(line) => format!("{starts} starts, {planned} planned; {}", text_of(line)),
            None => format!("{starts} starts, {planned} planned; no warning, which would have been a panic"),
        };
        expect(starts == planned && trouble.is_empty(), seen)
    })
}

/// The check `host-kernel-is-well`, and its sabotage [`HOST_WARNS`]. Lines with `expected` in them are no trouble.
pub(super) fn host_is_well(stand: &mut Stand<'_>, host: &Host, expected: Option<&str>) -> Result<()> {
    let agent = host.agent();
    if stand.sabotaged(HOST_WARNS.name) {
        // Without the newline the kernel holds the line back, for more of it.
        agent.write("/dev/kmsg", "WARNING: this is sabotage\n")?;
    }
    stand.report.check("host-kernel-is-well", &agent.kernel_log(), || {
        agent.catch_up_with_kernel()?;
        let mut trouble = agent.kernel_lines(TROUBLE);
        trouble.retain(|line| !expected.is_some_and(|expected| line.contains(expected)));
        let seen = trouble.first().map_or("no warning, no fault of the IOMMU", |line| text_of(line));
        expect(trouble.is_empty(), seen)
    })
}
