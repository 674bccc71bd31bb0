// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The functions that guests get.

use crate::agent::Agent;
use crate::error::{Error, Result};
use crate::host::payload;
use crate::iommu::Iommu;
use crate::machine::{Guest, Machine};
use virtio_irq_lab_agent::{Bytes, Operation};

/// The VMM's process id, by which the daemon finds the VFIO devices.
pub(super) const PIDFILE: &str = "/run/qemu.pid";

/// Where the VMM speaks QMP.
pub(super) const QMP: &str = "/run/qmp.sock";

/// A function: what emulates it, where it is on the host, and where a guest sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Function {
    emulation: Emulation,
    /// On the host.
    pub(super) host: &'static str,
    /// In the guest.
    pub(super) guest: &'static str,
    /// Options of its assignment to the guest.
    options: &'static str,
}

/// One MSI vector, and a DMA engine that writes any bytes to any address. It has no requester id, so that VT-d does not check
/// whose message it writes: this one device can play the message store of any other. AMD-Vi takes what has none to come from this slot
/// ([`Iommu::AMDVI`]).
pub(super) const EDU: Function = Function {
    emulation: Emulation::Device("edu,addr=14.0,dma_mask=0xffffffff"),
    host: "0000:00:14.0",
    guest: "0000:00:06.0",
    options: "",
};

/// Ten MSI-X vectors, which a register raises in software, with the function's requester id.
pub(super) const IGB: Function = Function {
    emulation: Emulation::Device("igb,addr=06.0"),
    host: "0000:00:06.0",
    guest: "0000:00:07.0",
    options: "",
};

/// A card that keeps the messages of its rings in registers of its own, and up to 32 MSI vectors.
pub(super) const WCN6855: Function = Function {
    emulation: Emulation::WifiCard("05.0"),
    host: "0000:00:05.0",
    guest: "0000:00:06.0",
    options: "",
};

/// What emulates a function.
#[derive(Debug, Clone, Copy)]
enum Emulation {
    /// QEMU, with this `-device`.
    Device(&'static str),
    /// A program beside QEMU, which shows it at this slot.
    WifiCard(&'static str),
}

/// Sixteen contiguous MSI vectors. Nothing here lets it raise them: edu writes their messages.
pub(super) const XHCI: Function = Function {
    emulation: Emulation::Device("nec-usb-xhci,addr=07.0,msi=on,msix=off,intrs=16"),
    host: "0000:00:07.0",
    guest: "0000:00:08.0",
    options: "",
};

impl Function {
    /// One of a machine that is nobody's host: `device` of QEMU, which its kernel sees at `address`.
    pub(super) const fn alone(device: &'static str, address: &'static str) -> Self {
        Self { emulation: Emulation::Device(device), host: address, guest: address, options: "" }
    }

    /// The machine with it.
    pub(super) fn add_to(&self, machine: Machine) -> Machine {
        match self.emulation {
            Emulation::Device(device) => machine.device(device),
            Emulation::WifiCard(slot) => machine.wifi_card(slot),
        }
    }

    /// The daemon's `--device` for it, without its VFIO device.
    pub(super) fn spec(&self) -> String {
        format!("{},guest={}", self.host, self.guest.trim_start_matches("0000:"))
    }

    /// The daemon's `--device` for it, with the VFIO device of the VMM.
    pub(super) fn spec_with_vfio(&self) -> String {
        format!("{},vfio=pidfile:{PIDFILE}", self.spec())
    }

    /// The daemon's `--device` for it, whose VFIO device the daemon opens and lends at the socket `loan`.
    pub(super) fn spec_lent(&self, loan: &str) -> String {
        format!("{},vfio=cdev:{loan}", self.spec())
    }

    /// Its directory in sysfs as the guest has it.
    pub(super) fn in_guest(&self, file: &str) -> String {
        format!("/sys/bus/pci/devices/{}/{file}", self.guest)
    }

    /// The function, assigned with these options of QEMU's `vfio-pci`.
    pub(super) fn option(self, options: &'static str) -> Self {
        Self { options, ..self }
    }

    /// Sets and clears bits in 16 bits of configuration space, behind the back of the guest's kernel.
    pub(super) fn change_config(&self, guest: &Agent, offset: usize, set: u16, clear: u16) -> Result<()> {
        let path = self.in_guest("config");
        let config = guest.read_bytes(&path)?;
        let half = config.get(offset..offset + 2).and_then(|bytes| bytes.try_into().ok());
        let half = half.ok_or_else(|| Error::Unexpected(format!("{path} ends before {offset:#x}")))?;
        let value = (u16::from_le_bytes(half) | set) & !clear;
        let data = Bytes(value.to_le_bytes().to_vec());
        guest.perform(Operation::WriteAt { path, offset: offset as u64, data })
    }

    fn slot(&self) -> &'static str {
        self.guest.trim_start_matches("0000:00:")
    }
}

/// An emulated host with this IOMMU and these functions.
pub(super) fn machine_with(iommu: &'static Iommu, functions: &[Function]) -> Machine {
    functions.iter().fold(Machine::new(iommu), |machine, function| function.add_to(machine))
}

/// A guest with these functions assigned to it.
pub(super) fn guest_with(functions: &[Function]) -> Guest {
    let assign =
        |guest: Guest, function: &Function| guest.assign(function.host, function.slot(), function.options);
    let qmp = format!("unix:{QMP},server=on,wait=off");
    let options = ["-pidfile", PIDFILE, "-qmp", &qmp].map(str::to_owned);
    functions.iter().fold(Guest::plain(), assign).with(options)
}

/// A guest with a function that a daemon lends at the socket `loan`.
pub(super) fn guest_borrowing(function: Function, loan: &str) -> Guest {
    let loan = format!("{loan},addr={}", function.slot());
    guest_with(&[]).launched_by([
        payload("vhost-device-irq"),
        "exec".into(),
        "--vfio".into(),
        loan,
        "--".into(),
    ])
}
