// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The same from inside of a guest.

use super::kernel_log::Line;
use super::report::{Facts, Finding, Mark, Subject, Verdict};
use super::{Tree, cards, names, symptoms};
use crate::host::linux::Survey;
use serde_json::json;
use virtio_irq_proto::{DEVICE_ID, PciAddress};

/// The module of the guest's kernel.
const MODULE: &str = "sys/module/virtio_irq";
const DRIVER: &str = "sys/bus/virtio/drivers/virtio_irq";

/// What the patches add to ath11k_pci and ath12k_pci, as the kernel's table of symbols names it.
const PATCHED: &[&str] = &["_virtio_irq_get", "_update_msi", "_resume_msi"];

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
            let module = card.map_or("the function's driver", |card| card.driver);
            findings.push(Finding::remedy("no driver has it", format!("modprobe {module}")));
        }
        Some(driver) => {
            facts.add(Mark::Good, "driver", driver, json!(driver));
            asks(tree, driver, &mut facts, &mut findings);
        }
    }
    if let Some(lines) = log {
        told(lines, &name, &mut facts);
    }
    if let Some(card) = card {
        facts.say(Mark::Neutral, "known", card.known);
    }
    Subject::new(&name, &title, facts, findings, floor)
}

/// Whether the driver asks virtio-irq: it uses the module's symbols, or has the functions that the patches add.
fn asks(tree: &Tree, driver: &str, facts: &mut Facts, findings: &mut Vec<Finding>) {
    let module = tree
        .link(&format!("sys/bus/pci/drivers/{driver}/module"))
        .unwrap_or_else(|| driver.replace('-', "_"));
    let holds = tree.exists(&format!("{MODULE}/holders/{module}"));
    let tag = format!("[{module}]");
    let symbols = tree.text("proc/kallsyms").unwrap_or_default();
    let patched = symbols.lines().any(|line| {
        line.ends_with(&tag)
            && PATCHED
                .iter()
                .any(|name| line.split_whitespace().nth(2).is_some_and(|symbol| symbol.ends_with(name)))
    });
    if holds || patched {
        facts.add(Mark::Good, "asks virtio-irq", "yes", json!(true));
        return;
    }
    facts.add(Mark::Poor, "asks virtio-irq", "no", json!(false));
    findings.push(Finding::remedy(
        format!(
            "{driver} programs the message that this guest sees, which is not the host's: use one that asks virtio-irq \
             (patches are in guest-driver/linux/patches)"
        ),
        format!("make -C /lib/modules/$(uname -r)/build M=$PWD modules && rmmod {module}; insmod ./{module}.ko"),
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
