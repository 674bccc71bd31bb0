// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The same from inside of a guest.

use super::cards::Card;
use super::kernel_log::Line;
use super::report::{Facts, Finding, Mark, Subject, Verdict};
use super::{Tree, cards, names, symptoms};
use crate::host::linux::Survey;
use serde_json::json;
use virtio_irq_proto::{DEVICE_ID, PciAddress};

/// The module of the guest's kernel.
const MODULE: &str = "sys/module/virtio_irq";
const DRIVER: &str = "sys/bus/virtio/drivers/virtio_irq";

/// The guest itself: device and module.
pub(super) fn machine(tree: &Tree) -> Subject {
    let mut facts = Facts::default();
    let mut findings = Vec::new();
    let release = tree.text("proc/sys/kernel/osrelease").unwrap_or_else(|| "of unknown version".to_owned());
    let (devices, bound) = devices(tree);
    if devices.is_empty() {
        facts.add(Mark::Bad, "device", "none", json!([]));
        findings.push(Finding::remedy(
            "this guest has no virtio-irq device: start the daemon on the host, and the VM with the options that it \
             prints",
            "vhost-device-irq qemu-args --socket-path /run/irq.sock --memory 4G    # on the host",
        ));
    } else {
        facts.add(Mark::Good, "device", devices.join(", "), json!(devices));
    }
    if !tree.exists(MODULE) {
        facts.add(Mark::Poor, "module", "not loaded", json!(false));
        findings.push(Finding::remedy("virtio_irq is not loaded", "modprobe virtio_irq"));
    } else {
        let users = tree.list(&format!("{MODULE}/holders"));
        let text = match users.as_slice() {
            [] => "loaded".to_owned(),
            users => format!("loaded, used by {}", users.join(", ")),
        };
        facts.add(Mark::Good, "module", text, json!(true));
        if !devices.is_empty() && bound.is_empty() {
            findings.push(Finding::remedy(
                "virtio_irq is loaded and left the device alone: the kernel's log says why",
                "dmesg | grep -e virtio_irq -e virtio-irq",
            ));
        }
    }
    if !bound.is_empty() {
        facts.add(Mark::Good, "bound", bound.join(", "), json!(bound));
    }
    Subject::new("guest", &format!("Linux {release}"), facts, findings, Verdict::Works)
}

/// Devices with virtio-irq's id, and those of them that the module has.
fn devices(tree: &Tree) -> (Vec<String>, Vec<String>) {
    let all = tree.list("sys/bus/virtio/devices").into_iter().filter(|name| {
        let id = tree.text(&format!("sys/bus/virtio/devices/{name}/device"));
        id.and_then(|text| u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()) == Some(DEVICE_ID)
    });
    let all: Vec<_> = all.collect();
    let bound = all.iter().filter(|name| tree.exists(&format!("{DRIVER}/{name}"))).cloned().collect();
    (all, bound)
}

/// One function as its guest sees it.
pub(super) fn function(tree: &Tree, address: PciAddress, floor: Verdict, log: Option<&[Line]>) -> Subject {
    let name = address.to_string();
    let survey = match Survey::of(&tree.sysfs, address, None) {
        Ok(survey) => survey,
        Err(error) => {
            let findings = vec![Finding::obstacle(error.to_string())];
            return Subject::new(&name, "not there", Facts::default(), findings, floor);
        }
    };
    let ids = survey.ids;
    let title = format!("{} [{:04x}:{:04x}]", names::of(&tree.host, ids), ids.vendor, ids.device);
    let mut facts = Facts::default();
    let mut findings = Vec::new();
    let card = cards::find(ids);
    match survey.driver.as_deref() {
        None => {
            facts.add(Mark::Poor, "driver", "none", json!(null));
            let command = format!("modprobe $(cat /sys/bus/pci/devices/{name}/modalias)");
            findings.push(Finding::remedy("no driver has it", command));
        }
        Some(driver) => {
            facts.add(Mark::Good, "driver", driver, json!(driver));
            asks(tree, driver, card, &mut facts, &mut findings);
        }
    }
    if let Some(lines) = log {
        told(lines, &name, &mut facts);
    }
    if let Some(card) = card {
        facts.say(Mark::Neutral, "known", card.known());
    }
    Subject::new(&name, &title, facts, findings, floor)
}

/// Whether the driver asks virtio-irq: it holds the module, or has the functions that the patches add to it. A driver that looks
/// the module's symbols up when it needs them leaves no other trace.
fn asks(tree: &Tree, driver: &str, card: Option<&Card>, facts: &mut Facts, findings: &mut Vec<Finding>) {
    let link = tree.link(&format!("sys/bus/pci/drivers/{driver}/module"));
    let module = link.unwrap_or_else(|| driver.replace('-', "_"));
    let symbols = tree.text("proc/kallsyms").unwrap_or_default();
    let tag = format!("[{module}]");
    let telling = card.map_or(&[][..], |card| card.asks());
    // Address, type, name, and the module behind a tab. Which module of a driver has the function differs from one
    // kernel to the next, and the compiler may have given a copy of it another ending.
    let is_telling = |line: &str| {
        let name = line.split_whitespace().nth(2).and_then(|name| name.split('.').next());
        name.is_some_and(|name| telling.contains(&name))
    };
    if tree.exists(&format!("{MODULE}/holders/{module}")) || symbols.lines().any(is_telling) {
        return facts.add(Mark::Good, "asks virtio-irq", "yes", json!(true));
    }
    let is_listed = symbols.lines().any(|line| line.ends_with(&tag));
    if telling.is_empty() || !is_listed {
        return facts.add(
            Mark::Neutral,
            "asks virtio-irq",
            "not known: it leaves no trace if it does",
            json!(null),
        );
    }
    facts.add(Mark::Poor, "asks virtio-irq", "no", json!(false));
    findings.push(Finding::remedy(
        format!(
            "{driver} programs the message that this guest sees, which is not the host's: build the patched one \
             (guest-driver/linux/patches) and load it in its place"
        ),
        format!(
            "guest-driver/linux/patches/build.sh -o /tmp/patched && rmmod {module} && insmod /tmp/patched/*/modules/{module}.ko"
        ),
    ));
}

/// What the module and the driver said of the function, newest last.
fn told(lines: &[Line], address: &str, facts: &mut Facts) {
    let of_function = |line: &&Line| line.text.contains(address);
    let told = lines.iter().filter(of_function).rev().find(|line| line.text.contains(symptoms::TOLD));
    if let Some((_, message)) = told.and_then(|line| line.text.split_once(symptoms::TOLD)) {
        facts.say(Mark::Good, "told by the host", message.trim());
    }
}
