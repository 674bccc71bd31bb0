// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine: its IOMMU, whether that remaps interrupts, and what runs on it.

use super::report::{Facts, Finding, Mark, Subject, Verdict};
use super::{Tree, qemu};
use crate::host::linux::{Evidence, Platform, Survey};
use serde_json::json;

/// Kinds of IOMMUs, by the names that their drivers give them in `/sys/class/iommu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IommuKind {
    Vtd,
    Amd,
    Smmu,
    Virtio,
    Other,
}

/// What a function's prospects depend on.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) platform: Platform,
    pub(super) iommu: Option<IommuKind>,
    units: Vec<String>,
    isolating: Option<Evidence>,
    /// The machine's own verdict, for its functions.
    pub(super) subject: Subject,
}

impl IommuKind {
    fn of(unit: &str) -> Self {
        match unit.trim_end_matches(|last: char| last.is_ascii_digit()) {
            "dmar" => Self::Vtd,
            "ivhd" => Self::Amd,
            name if name.starts_with("smmu") => Self::Smmu,
            "virtio" => Self::Virtio,
            _ => Self::Other,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Vtd => "Intel VT-d",
            Self::Amd => "AMD-Vi",
            Self::Smmu => "Arm SMMU",
            Self::Virtio => "virtio-iommu",
            Self::Other => "unknown kind",
        }
    }
}

impl Machine {
    pub(super) fn examine(tree: &Tree) -> Self {
        let units = tree.list("sys/class/iommu");
        let iommu = units.first().map(|unit| IommuKind::of(unit));
        let isolating = Survey::isolating(&tree.sysfs);
        let subject = Subject::new("", "", Facts::default(), Vec::new(), Verdict::Works);
        let mut machine = Self { platform: tree.sysfs.platform(), iommu, units, isolating, subject };
        machine.subject = machine.describe(tree);
        machine
    }

    /// Whether the platform looks interrupt messages up in a table.
    pub(super) fn remaps(&self) -> bool {
        self.isolating.is_some()
    }

    fn describe(&self, tree: &Tree) -> Subject {
        let mut facts = Facts::default();
        let mut findings = Vec::new();
        let release =
            tree.text("proc/sys/kernel/osrelease").unwrap_or_else(|| "of unknown version".to_owned());
        if is_dom0(tree) {
            facts.say(Mark::Bad, "hypervisor", "Xen, and this is its dom0");
            findings.push(Finding::obstacle(
                "Xen keeps the IOMMU and the interrupt messages to itself: neither VFIO nor this daemon sees them. \
                 Start Linux without Xen",
            ));
            return Subject::new("host", &format!("Linux {release}"), facts, findings, Verdict::Works);
        }
        self.iommu(tree, &mut facts, &mut findings);
        self.remapping(tree, &mut facts, &mut findings);
        unsafe_interrupts(tree, &mut facts, &mut findings);
        vfio(tree, &mut facts, &mut findings);
        qemu::examine(tree, &mut facts, &mut findings);
        privileges(tree, &mut facts, &mut findings);
        Subject::new("host", &format!("Linux {release}"), facts, findings, Verdict::Works)
    }

    fn iommu(&self, tree: &Tree, facts: &mut Facts, findings: &mut Vec<Finding>) {
        if let Some(kind) = self.iommu {
            let text = format!("{}: {}", kind.words(), self.units.join(", "));
            facts.add(Mark::Good, "iommu", text, json!({ "kind": kind.words(), "units": self.units }));
            return;
        }
        facts.add(Mark::Poor, "iommu", "none that the kernel uses", json!(null));
        let table = ["DMAR", "IVRS", "IORT"].into_iter().find(|name| tree.exists(&acpi(name)));
        let argument = if table == Some("IVRS") { "amd_iommu=on" } else { "intel_iommu=on" };
        findings.push(match table {
            Some(table) => Finding::remedy(
                format!("the firmware describes an IOMMU (ACPI table {table}) that the kernel does not use: switch it on, and restart"),
                kernel_argument(tree, argument, true),
            ),
            None => Finding::remedy(
                "the firmware describes no IOMMU: switch it on in the firmware's setup (VT-d, AMD-Vi or IOMMU, SMMU). \
                 If there is no such switch, this machine has none and cannot assign functions safely",
                "systemctl reboot --firmware-setup",
            ),
        });
    }

    fn remapping(&self, tree: &Tree, facts: &mut Facts, findings: &mut Vec<Finding>) {
        let name = if self.platform == Platform::Arm64 { "ITS" } else { "interrupt remapping" };
        if let Some(evidence) = &self.isolating {
            let (text, value) = match evidence {
                Evidence::Chip { irq, name } => (
                    format!("on: interrupt {irq}'s chip is {name} (/sys/kernel/irq/{irq}/chip_name)"),
                    json!({ "on": true, "irq": irq, "chip": name }),
                ),
                Evidence::Node(its) => (
                    format!("on: the device tree has the ITS {its}, which no function uses now"),
                    json!({ "on": true, "its": its }),
                ),
            };
            facts.add(Mark::Good, "interrupt remapping", text, value);
            return;
        }
        let (mark, text, finding) = self.why_no_remapping(tree, name);
        facts.add(mark, "interrupt remapping", text, json!({ "on": false }));
        // Without an IOMMU at all there is one thing to do, and it has been said.
        if self.iommu.is_some() {
            findings.push(finding);
        }
    }

    /// What is known of why there is none, best known first.
    fn why_no_remapping(&self, tree: &Tree, name: &str) -> (Mark, String, Finding) {
        let off = |why: &str| format!("off: no chip in /sys/kernel/irq stands for it{why}");
        let arguments = tree.text("proc/cmdline").unwrap_or_default();
        let forbidden = arguments
            .split_whitespace()
            .find(|argument| matches!(*argument, "intremap=off" | "nointremap" | "noapic" | "nolapic"));
        if let Some(argument) = forbidden {
            let finding = Finding::remedy(
                format!(
                    "{name} was switched off on the kernel's command line ({argument}): remove that, and restart. {DANGER}"
                ),
                kernel_argument(tree, argument, false),
            );
            return (Mark::Poor, off(&format!("; the kernel was started with {argument}")), finding);
        }
        if self.platform == Platform::Arm64 {
            let text = "this machine has no ITS, or the kernel does not use it: messages go unchecked";
            return (Mark::Bad, off(""), Finding::obstacle(format!("{text}. {DANGER}")));
        }
        if self.iommu == Some(IommuKind::Vtd) && self.units.iter().any(|unit| !can_remap(tree, unit)) {
            let text = "at least one IOMMU of this machine cannot remap interrupts (bit 3 of its ecap is 0), and it is \
                        all or none";
            return (Mark::Bad, off("; the hardware cannot"), Finding::obstacle(format!("{text}. {DANGER}")));
        }
        let finding = Finding::remedy(
            format!(
                "{name} is off although nothing here forbids it. The kernel says why in its log (DMAR-IR or AMD-Vi \
                 lines); most often the firmware asks for it: switch on VT-d and x2APIC, or AMD-Vi, in its setup, or \
                 update it. {DANGER}"
            ),
            "dmesg | grep -e DMAR -e AMD-Vi -e remapping",
        );
        (Mark::Poor, off(""), finding)
    }
}

const DANGER: &str = "Until then a guest could raise any interrupt of this host, and the daemon refuses the function \
                      unless it is started with --allow-unsafe-interrupts";

fn acpi(table: &str) -> String {
    format!("sys/firmware/acpi/tables/{table}")
}

/// Bit 3 of VT-d's extended capability register, "IR". A register that cannot be read is given the benefit of the doubt.
fn can_remap(tree: &Tree, unit: &str) -> bool {
    let register = tree.text(&format!("sys/class/iommu/{unit}/intel-iommu/ecap"));
    let value = register.and_then(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok());
    value.is_none_or(|value| value & 1 << 3 != 0)
}

/// The command that adds an argument to the kernel's command line, or removes it, in this distribution's way.
fn kernel_argument(tree: &Tree, argument: &str, add: bool) -> String {
    if tree.exists("usr/sbin/grubby") || tree.exists("usr/bin/grubby") {
        let option = if add { "--args" } else { "--remove-args" };
        return format!("grubby --update-kernel=ALL {option}={argument} && reboot");
    }
    if add {
        let line = format!("GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {argument}\"");
        format!("echo '{line}' >> /etc/default/grub && update-grub && reboot")
    } else {
        format!("sed -i 's/\\b{argument}\\b//' /etc/default/grub && update-grub && reboot")
    }
}

fn is_dom0(tree: &Tree) -> bool {
    let capabilities = tree.text("proc/xen/capabilities").unwrap_or_default();
    tree.text("sys/hypervisor/type").as_deref() == Some("xen") && capabilities.contains("control_d")
}

/// VFIO's own switch. Its drivers ask for isolation as the daemon does.
fn unsafe_interrupts(tree: &Tree, facts: &mut Facts, findings: &mut Vec<Finding>) {
    for module in ["vfio_iommu_type1", "iommufd"] {
        let path = format!("sys/module/{module}/parameters/allow_unsafe_interrupts");
        let Some(value) = tree.text(&path) else { continue };
        let allowed = value == "Y" || value == "1";
        let mark = if allowed { Mark::Poor } else { Mark::Good };
        let text = format!("{} ({module})", if allowed { "allowed" } else { "refused" });
        facts.add(mark, "unsafe interrupts", text, json!({ "allowed": allowed, "module": module }));
        if allowed {
            findings.push(Finding::remark(format!(
                "{module} lets a guest have functions whose interrupts nothing checks: no need for it where \
                 interrupts are remapped (echo 0 > /{path})"
            )));
        }
        return;
    }
    facts.add(Mark::Neutral, "unsafe interrupts", "refused, as long as VFIO is not loaded", json!(null));
}

fn vfio(tree: &Tree, facts: &mut Facts, findings: &mut Vec<Finding>) {
    if tree.exists("sys/bus/pci/drivers/vfio-pci") {
        facts.add(Mark::Good, "vfio-pci", "loaded", json!(true));
    } else {
        facts.add(Mark::Poor, "vfio-pci", "not loaded", json!(false));
        findings
            .push(Finding::remedy("the driver that assigns functions is not loaded", "modprobe vfio-pci"));
    }
}

/// Numbers of include/uapi/linux/capability.h, and what each is for here.
const CAPABILITIES: &[(u32, &str, &str)] = &[
    (21, "CAP_SYS_ADMIN", "read configuration spaces beyond 64 bytes"),
    (19, "CAP_SYS_PTRACE", "see who has a function open, and take vfio=pid: from it"),
    (2, "CAP_DAC_READ_SEARCH", "do so where a VMM is another user's"),
    (34, "CAP_SYSLOG", "read the kernel's log where kernel.dmesg_restrict is 1"),
];

fn privileges(tree: &Tree, facts: &mut Facts, findings: &mut Vec<Finding>) {
    let status = tree.text("proc/self/status").unwrap_or_default();
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(held) = field.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()) else { return };
    let missing: Vec<_> = CAPABILITIES.iter().filter(|(bit, ..)| held >> bit & 1 == 0).collect();
    let names: Vec<_> = missing.iter().map(|(_, name, _)| *name).collect();
    if missing.is_empty() {
        facts.add(Mark::Good, "privileges", "enough for everything", json!({ "missing": [] }));
        return;
    }
    let text = format!("without {}", names.join(", "));
    facts.add(Mark::Poor, "privileges", text, json!({ "missing": names }));
    let what: Vec<_> = missing.iter().map(|(_, name, use_)| format!("{name} to {use_}")).collect();
    let text =
        format!("this process may not do everything that the daemon does. It lacks {}", what.join("; "));
    findings.push(Finding::remedy(text, "sudo vhost-device-irq doctor"));
}
