// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One function of the host.

use super::holders::{Holder, Holders};
use super::machine::Machine;
use super::message::Meaning;
use super::report::{Facts, Finding, Mark, Subject, Verdict};
use super::{Tree, cards, names};
use crate::device::Pair;
use crate::host::Isolation;
use crate::host::linux::{Evidence, MsiState, MsixState, OpenError, Registry, Survey};
use crate::vfio::{DeviceSource, DeviceSupply};
use serde_json::{Value, json};
use std::sync::Arc;
use virtio_irq_proto::PciAddress;

/// Messages of this many vectors are shown to a person.
const SHOWN_MESSAGES: usize = 3;

/// A function that is looked at.
struct Patient<'a> {
    tree: &'a Tree,
    machine: &'a Machine,
    address: PciAddress,
    facts: Facts,
    findings: Vec<Finding>,
}

/// Looks at a function and judges it.
pub(super) fn examine(tree: &Tree, machine: &Machine, address: PciAddress) -> Subject {
    let mut patient = Patient { tree, machine, address, facts: Facts::default(), findings: Vec::new() };
    match patient.look() {
        Ok(title) => {
            let floor = machine.subject.verdict;
            Subject::new(&address.to_string(), &title, patient.facts, patient.findings, floor)
        }
        Err(error) => {
            let text = match error {
                OpenError::NotFound { .. } => error.to_string(),
                error => format!("it changed while it was looked at ({error}): look again"),
            };
            let findings = vec![Finding::obstacle(text)];
            Subject::new(&address.to_string(), "not there", Facts::default(), findings, Verdict::Works)
        }
    }
}

impl Patient<'_> {
    /// Gathers everything. Returns what the function is.
    fn look(&mut self) -> Result<String, OpenError> {
        let group = self.tree.link(&self.file("iommu_group"));
        let device = self.tree.list(&self.file("vfio-dev")).into_iter().next();
        let holders = group.as_ref().map(|group| Holders::of(self.tree, group, device.as_deref()));
        let supply = holders.as_ref().and_then(|holders| self.supply(holders.seen.first()?));
        let survey = Survey::of(&self.tree.sysfs, self.address, supply)?;
        let ids = survey.ids;
        let title = format!("{} [{:04x}:{:04x}]", names::of(&self.tree.host, ids), ids.vendor, ids.device);

        self.driver(survey.driver.as_deref());
        self.group(group.as_deref());
        self.isolation(&survey);
        match &survey.registry {
            Ok(registry) => self.interrupts(registry, holders.as_ref()),
            Err(error) => self.no_registers(error),
        }
        let card = cards::find(ids);
        self.reset(card);
        self.holders(holders.as_ref());
        self.power();
        if let Some(card) = card {
            self.facts.say(Mark::Neutral, "known", card.known());
        }
        Ok(title)
    }

    fn file(&self, name: &str) -> String {
        format!("sys/bus/pci/devices/{}/{name}", self.address)
    }

    /// The function's VFIO device out of the process that has it open, which can be looked through at MSI-X messages.
    fn supply(&self, holder: &Holder) -> Option<Arc<DeviceSupply>> {
        if !self.tree.is_live {
            return None;
        }
        DeviceSource::Process(holder.pid).open(&self.tree.host, self.address).ok().map(Arc::new)
    }

    fn driver(&mut self, driver: Option<&str>) {
        let name = driver.unwrap_or("none");
        if driver.is_some_and(|driver| driver.contains("vfio")) {
            return self.facts.add(Mark::Good, "driver", name, json!(driver));
        }
        self.facts.add(Mark::Poor, "driver", name, json!(driver));
        if self.machine.subject.verdict == Verdict::Cannot {
            return;
        }
        let command = bind_to_vfio(self.tree, &self.address.to_string(), driver.is_some());
        let bound =
            driver.map_or_else(|| "no driver has it".to_owned(), |driver| format!("it is bound to {driver}"));
        let text = format!("{bound}, and it has to be vfio-pci's to be assigned to a guest");
        self.findings.push(Finding::remedy(text, command));
    }

    fn group(&mut self, group: Option<&str>) {
        let Some(group) = group else {
            self.facts.add(Mark::Poor, "group", "none: no IOMMU translates for it", json!(null));
            if self.machine.iommu.is_some() {
                self.findings.push(Finding::obstacle(
                    "no IOMMU of this host is responsible for it: put the card into another slot, or look for a \
                     firmware without this fault",
                ));
            }
            return;
        };
        let kind = self.tree.text(&self.file("iommu_group/type"));
        let mut others = Vec::new();
        for other in self.tree.list(&self.file("iommu_group/devices")) {
            if other == self.address.to_string() {
                continue;
            }
            let driver = self.tree.link(&format!("sys/bus/pci/devices/{other}/driver"));
            // What VFIO lets be in a group that a guest has (`vfio_dev_driver_allowed` in drivers/vfio/group.c).
            let harmless = driver.as_deref().is_none_or(|driver| {
                driver.contains("vfio") || matches!(driver, "pcieport" | "pci-stub" | "shpchp")
            });
            if !harmless {
                let driver = driver.as_deref().unwrap_or_default();
                self.findings.push(Finding::remedy(
                    format!("{other} is in the same IOMMU group and belongs to the host's {driver}: a group goes to a guest whole"),
                    bind_to_vfio(self.tree, &other, true),
                ));
            }
            others.push((other, driver));
        }
        let described = others
            .iter()
            .map(|(other, driver)| format!("{other} ({})", driver.as_deref().unwrap_or("no driver")));
        let list = described.collect::<Vec<_>>().join(", ");
        let text = match (&kind, others.is_empty()) {
            (_, false) => format!("{group}, with {list}"),
            (Some(kind), true) => format!("{group}, alone, type {kind}"),
            (None, true) => format!("{group}, alone"),
        };
        let members: Vec<_> =
            others.iter().map(|(other, driver)| json!({ "address": other, "driver": driver })).collect();
        let value = json!({ "number": group, "type": kind, "others": members });
        self.facts.add(Mark::Good, "group", text, value);
        self.reserved_regions();
    }

    /// Lines of two addresses and a type.
    fn reserved_regions(&mut self) {
        let Some(text) = self.tree.text(&self.file("iommu_group/reserved_regions")) else { return };
        let regions: Vec<_> = text
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let mut address = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
                Some((address()?, address()?, words.next()?.to_owned()))
            })
            .collect();
        if regions.is_empty() {
            return;
        }
        let shown = regions.iter().map(|(first, last, kind)| format!("{kind} {first:#x}-{last:#x}"));
        let value: Vec<_> = regions
            .iter()
            .map(|(first, last, kind)| json!({ "first": first, "last": last, "type": kind }))
            .collect();
        self.facts.add(Mark::Neutral, "reserved", shown.collect::<Vec<_>>().join(", "), Value::Array(value));
    }

    fn isolation(&mut self, survey: &Survey) {
        match (survey.isolation.isolation, &survey.isolation.evidence) {
            (Isolation::Isolated, evidence) => {
                let why = evidence.as_ref().map(|evidence| match evidence {
                    Evidence::Chip { irq, name } => format!(", by {name} of interrupt {irq}"),
                    Evidence::Node(its) => format!(", by the ITS {its} of the device tree"),
                });
                let text = format!("yes{}", why.unwrap_or_default());
                self.facts.add(Mark::Good, "isolated", text, json!(true));
            }
            // Why that is so, and what to do, stands with the machine or the group.
            (Isolation::Missing(reason), _) => {
                self.facts.add(Mark::Poor, "isolated", format!("no: {reason}"), json!(false));
                if self.machine.remaps() && self.machine.subject.verdict == Verdict::Works {
                    let text = format!("a guest could raise any interrupt of this host with it: {reason}");
                    self.findings.push(Finding::obstacle(text));
                }
            }
        }
    }

    fn no_registers(&mut self, error: &OpenError) {
        match error {
            OpenError::Unprivileged { readable, .. } => {
                let text = format!("only the first {readable} bytes are for this process to see");
                self.facts.add(Mark::Poor, "config", text, json!({ "readable": readable }));
                self.findings.push(Finding::remedy(
                    "its capabilities and messages are not for this process to see",
                    format!("sudo vhost-device-irq doctor {}", self.address),
                ));
            }
            OpenError::Dead { .. } => {
                self.facts.add(Mark::Bad, "config", "all ones: nothing answers", json!({ "dead": true }));
                let path = format!("/sys/bus/pci/devices/{}", self.address);
                self.findings.push(Finding::remedy(
                    "it is dead: its power is off, or its firmware or its link crashed. Remove it and look for it \
                     again; if it stays dead, switch the host off and on (a restart may not be enough)",
                    format!("echo 1 > {path}/remove; sleep 1; echo 1 > /sys/bus/pci/rescan"),
                ));
            }
            error => {
                self.facts.say(Mark::Bad, "config", format!("{error}"));
                self.findings.push(Finding::remedy(
                    "its configuration space cannot be read",
                    format!("sudo vhost-device-irq doctor {}", self.address),
                ));
            }
        }
    }

    fn interrupts(&mut self, registry: &Registry, holders: Option<&Holders>) {
        let Registry { has_pin, msi, msix } = registry;
        let mut kinds = Vec::new();
        kinds.extend(msi.as_ref().map(|msi| {
            format!(
                "MSI {} ({}-bit)",
                count(msi.vectors.into(), "vector"),
                if msi.is_64_bit { 64 } else { 32 }
            )
        }));
        kinds.extend(msix.as_ref().map(|msix| {
            format!("MSI-X {} (table in BAR {})", count(msix.entries.into(), "vector"), msix.bar)
        }));
        kinds.extend(has_pin.then(|| "INTx".to_owned()));
        let value = json!({
            "intx": u8::from(*has_pin),
            "msi": msi.as_ref().map_or(0, |msi| msi.vectors),
            "msix": msix.as_ref().map_or(0, |msix| msix.entries),
        });
        if msi.is_none() && msix.is_none() {
            let text = if *has_pin { "INTx only" } else { "none" };
            self.facts.add(Mark::Bad, "interrupts", text, value);
            self.findings
                .push(Finding::obstacle("it has neither MSI nor MSI-X, so there are no messages to tell"));
            return;
        }
        self.facts.add(Mark::Good, "interrupts", kinds.join(", "), value);
        let held = holders.is_some_and(|holders| !holders.seen.is_empty());
        match (msi, msix) {
            (Some(MsiState { messages: Ok(pairs), .. }), _) if !pairs.is_empty() => {
                let numbered = (0..).zip(pairs.iter().copied()).collect::<Vec<_>>();
                self.messages("MSI", &numbered);
            }
            (_, Some(msix)) if msix.enabled => self.msix_messages(msix),
            (Some(MsiState { messages: Err(error), .. }), _) => {
                self.facts.say(Mark::Poor, "enabled", format!("not known: {error}"));
            }
            _ => {
                let why = if held { "the guest has not enabled any yet" } else { "nobody uses it" };
                self.facts.add(Mark::Neutral, "enabled", format!("none: {why}"), json!([]));
            }
        }
    }

    fn msix_messages(&mut self, msix: &MsixState) {
        match &msix.messages {
            Ok(pairs) => self.messages("MSI-X", pairs),
            Err(error) => {
                self.facts.add(
                    Mark::Neutral,
                    "enabled",
                    format!("MSI-X; messages not seen: {error}"),
                    json!(null),
                );
                self.findings.push(Finding::remark(
                    "its MSI-X table is for nobody to map but the VMM: start the daemon with vfio=pidfile:PATH of the \
                     VMM, as its --device",
                ));
            }
        }
    }

    fn messages(&mut self, kind: &str, pairs: &[(u16, Pair)]) {
        let meaning =
            |pair: Pair| Meaning::of(pair, self.machine.platform, self.machine.iommu, self.machine.remaps());
        let shown = pairs.iter().take(SHOWN_MESSAGES).map(|(vector, pair)| {
            format!("{kind} {vector} {:08x}/{:04x} ({})", pair.address, pair.data, meaning(*pair))
        });
        let mut text = shown.collect::<Vec<_>>().join("; ");
        if let Some(more) = pairs.len().checked_sub(SHOWN_MESSAGES).filter(|more| *more > 0) {
            text.push_str(&format!("; and {more} more"));
        }
        let unchecked = pairs.iter().any(|(_, pair)| matches!(meaning(*pair), Meaning::Compatibility { .. }));
        let value = pairs.iter().map(|(vector, pair)| {
            json!({
                "type": kind, "vector": vector, "address": pair.address, "data": pair.data,
                "meaning": meaning(*pair).to_string(),
            })
        });
        let value = Value::Array(value.collect());
        self.facts.add(if unchecked { Mark::Poor } else { Mark::Good }, "enabled", text, value);
    }

    fn reset(&mut self, card: Option<&cards::Card>) {
        // Kernels since 5.15 name the methods; no file, no method.
        match self.tree.text(&self.file("reset_method")) {
            Some(methods) if !methods.is_empty() => {
                let list: Vec<_> = methods.split_whitespace().collect();
                self.facts.add(Mark::Good, "reset", list.join(", "), json!(list));
                // Of a known card it is said there.
                if !list.contains(&"flr") && card.is_none_or(|card| card.resets) {
                    self.findings.push(Finding::remark(format!(
                        "it has no function-level reset ({} instead): it may not recover from a guest that crashed",
                        list.join(", ")
                    )));
                }
            }
            _ => {
                self.facts.add(Mark::Poor, "reset", "no method", json!([]));
                self.findings.push(Finding::remark(
                    "nothing can reset it: each guest gets it as the last one left it, and a crash may need a power \
                     cycle of the host",
                ));
            }
        }
    }

    fn holders(&mut self, holders: Option<&Holders>) {
        let Some(Holders { seen, hidden }) = holders else { return };
        let mut parts: Vec<_> =
            seen.iter().map(|Holder { pid, name }| format!("{name} (process {pid})")).collect();
        if parts.is_empty() {
            parts.push("nobody".to_owned());
        }
        if *hidden > 0 {
            parts.push(format!("{} not for this process to see", count(*hidden, "process")));
        }
        let value = json!({
            "holders": seen.iter().map(|holder| json!({ "pid": holder.pid, "name": holder.name })).collect::<Vec<_>>(),
            "hidden": hidden,
        });
        self.facts.add(Mark::Neutral, "held open by", parts.join(", "), value);
    }

    fn power(&mut self) {
        if self.tree.text(&self.file("power_state")).as_deref() == Some("D3cold") {
            self.facts.say(Mark::Neutral, "power", "D3cold: asleep until somebody opens it");
        }
    }
}

fn count(number: usize, noun: &str) -> String {
    let plural = match (number, noun) {
        (1, _) => "",
        (_, "process") => "es",
        _ => "s",
    };
    format!("{number} {noun}{plural}")
}

/// How a function gets to vfio-pci, and stays there over restarts where driverctl is installed.
fn bind_to_vfio(tree: &Tree, address: &str, bound: bool) -> String {
    if tree.exists("usr/sbin/driverctl") || tree.exists("usr/bin/driverctl") {
        return format!("driverctl set-override {address} vfio-pci");
    }
    let path = format!("/sys/bus/pci/devices/{address}");
    let unbind = if bound { format!("echo {address} > {path}/driver/unbind; ") } else { String::new() };
    format!("echo vfio-pci > {path}/driver_override; {unbind}echo {address} > /sys/bus/pci/drivers_probe")
}
