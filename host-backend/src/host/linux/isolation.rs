// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether the platform checks the interrupt messages of a function.
//!
//! The kernel knows (`msi_device_has_isolated_msi()`, which VFIO asks before it lets a container use a group), but
//! tells user space only through names of interrupt chips:
//!
//! - A function without an IOMMU group, or in a no-IOMMU one, has its DMA unchecked, and an MSI is a DMA write.
//! - x86: with interrupt remapping every chip behind it has a name with the prefix `IR-`: the IO-APIC's `IR-IO-APIC`
//!   (`ioapic_ir_chip` in arch/x86/kernel/apic/io_apic.c) and the per-device MSI domains
//!   (`IR-` from `dmar_msi_parent_ops` and `virt_amdvi_msi_parent_ops`). Both the Intel and the AMD driver turn it on
//!   for all IOMMUs or for none (`intel_prepare_irq_remapping`, `amd_iommu_prepare`), so one such chip stands for
//!   the machine.
//! - arm64: an ITS looks messages up by the device id that the bus carries, and is the one MSI parent that claims
//!   isolation (`IRQ_DOMAIN_FLAG_ISOLATED_MSI` in drivers/irqchip/irq-gic-v3-its.c). Its chips begin with `ITS`;
//!   those of the GICv2m frame, which checks nothing, do not. An ITS has chips only for functions that use interrupts
//!   at the moment, so where there is none the device tree decides ([`its`]).
//!
//! If the function has interrupts already, their chips decide: they are what its messages go through. On both
//! platforms the message names a slot of a table that stays the vector's for as long as the vector is enabled;
//! affinity changes rewrite the table, not the message. That makes an isolated function's messages stable.

use super::its;
use super::sysfs::{Function, Platform, Sysfs};
use crate::host::Isolation;
use std::fs;
use std::path::Path;

/// A verdict, and what it rests on.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) isolation: Isolation,
    /// What isolates, or nothing if nothing was found.
    pub(crate) evidence: Option<Evidence>,
}

/// What shows that messages are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// An interrupt, by its number, and the name of its chip.
    Chip { irq: String, name: String },
    /// An ITS, by its path in the device tree.
    Node(String),
}

pub(super) fn of(sysfs: &Sysfs, function: &Function) -> Finding {
    let missing = |reason| Finding { isolation: Isolation::Missing(reason), evidence: None };
    let group = function.path().join("iommu_group");
    if !group.exists() {
        return missing("it is in no IOMMU group: no IOMMU translates for it");
    }
    if read(&group.join("name")).is_some_and(|name| name == "vfio-noiommu") {
        return missing("it is in a no-IOMMU group");
    }
    let reason = match sysfs.platform() {
        Platform::X86 => "interrupt remapping is off on this host",
        Platform::Arm64 => "no ITS of this host is seen to check its interrupts",
        Platform::Other => {
            return missing("whether this architecture checks interrupt messages is not known here");
        }
    };
    let own = entries(&function.path().join("msi_irqs"));
    let evidence = if own.is_empty() {
        let its = || if sysfs.platform() == Platform::Arm64 { its::of(sysfs, function) } else { None };
        any_chip(sysfs).or_else(|| its().map(Evidence::Node))
    } else {
        isolating(sysfs, own)
    };
    let isolation = if evidence.is_some() { Isolation::Isolated } else { Isolation::Missing(reason) };
    Finding { isolation, evidence }
}

/// What of the machine isolates whatever is behind it, if anything does.
pub(super) fn of_machine(sysfs: &Sysfs) -> Option<Evidence> {
    let its = || if sysfs.platform() == Platform::Arm64 { its::of_machine(sysfs) } else { None };
    any_chip(sysfs).or_else(|| its().map(Evidence::Node))
}

fn any_chip(sysfs: &Sysfs) -> Option<Evidence> {
    isolating(sysfs, entries(&sysfs.join("kernel/irq")))
}

fn isolating(sysfs: &Sysfs, interrupts: Vec<String>) -> Option<Evidence> {
    let prefix = match sysfs.platform() {
        Platform::X86 => "IR-",
        Platform::Arm64 => "ITS",
        Platform::Other => return None,
    };
    let mut interrupts = interrupts;
    interrupts.sort_by_key(|irq| irq.parse().unwrap_or(u32::MAX));
    interrupts.into_iter().find_map(|irq| {
        let name = read(&sysfs.join("kernel/irq").join(&irq).join("chip_name"))?;
        name.starts_with(prefix).then_some(Evidence::Chip { irq, name })
    })
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|content| content.trim().to_owned())
}

fn entries(directory: &Path) -> Vec<String> {
    let Ok(directory) = fs::read_dir(directory) else { return Vec::new() };
    directory.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
