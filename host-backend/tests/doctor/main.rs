// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the doctor says of machines that are not this one.
//!
//! `machines/NAME.tree` has the machine's files, `machines/NAME.report` what is to be said of it. After a change that is meant,
//! `WRITE_REPORTS=1 cargo test -p vhost-device-irq --test doctor` writes the reports anew; read the difference.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test program: what fails here fails the test")]

mod tree;

use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use tree::Tree;

fn machine(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/doctor/machines").join(name)
}

fn unpack(name: &str) -> Tree {
    Tree::unpack(&fs::read_to_string(machine(&format!("{name}.tree"))).unwrap())
}

fn doctor(tree: &Tree, arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_vhost-device-irq"));
    program.arg("doctor").arg("--root").arg(tree.root()).args(arguments);
    program.output().unwrap()
}

fn text(output: Output) -> String {
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    String::from_utf8(output.stdout).unwrap()
}

fn report(tree: &Tree, arguments: &[&str]) -> Value {
    serde_json::from_str(&text(doctor(tree, &[&["--json"], arguments].concat()))).unwrap()
}

/// The commands that are to be typed, for the machine first.
fn commands(report: &Value) -> Vec<String> {
    let subjects = [&report["machine"]].into_iter().chain(report["functions"].as_array().unwrap());
    let findings = subjects.flat_map(|subject| subject["findings"].as_array().unwrap());
    findings.filter_map(|finding| finding["command"].as_str().map(str::to_owned)).collect()
}

#[track_caller]
fn says(name: &str, arguments: &[&str], code: i32) -> Value {
    let tree = unpack(name);
    let output = doctor(&tree, arguments);
    assert_eq!(output.status.code(), Some(code));
    let said = text(output);
    let path = machine(&format!("{name}.report"));
    if std::env::var_os("WRITE_REPORTS").is_some() {
        fs::write(&path, &said).unwrap();
    }
    assert_eq!(said, fs::read_to_string(&path).unwrap_or_default(), "{}", path.display());
    report(&tree, arguments)
}

#[test]
fn a_laptop_whose_guest_lacks_virtio_irq() {
    let report = says("vtd-laptop", &[], 0);
    let facts = &report["functions"][0]["facts"];
    assert_eq!(facts["enabled"][0]["address"], 0xfee0_0578_u32);
    assert_eq!(facts["enabled"][31]["meaning"], "VT-d remappable, table entry 0x4a");
    assert_eq!(facts["held open by"]["holders"][0]["pid"], 4711);
    assert_eq!(report["log"][0]["count"], 2);
    assert_eq!(report["log"][0]["function"], "0000:02:00.0");
    assert_eq!(commands(&report), Vec::<String>::new());
}

#[test]
fn the_emulated_host_of_the_lab() {
    let report = says("lab-vtd", &[], 0);
    assert_eq!(report["functions"][0]["facts"]["enabled"][0]["address"], 0xfee0_02b8_u32);
    assert_eq!(report["functions"][0]["facts"]["held open by"]["holders"][0]["name"], "qemu-system-x86");
}

#[test]
fn the_emulated_amd_host_of_the_lab() {
    let report = says("lab-amdvi", &[], 0);
    assert_eq!(report["functions"][0]["facts"]["enabled"][0]["meaning"], "AMD-Vi, table entry 0x0");
}

/// The lab's AMD host before anybody prepared it: QEMU is too old, nothing is vfio-pci's, and the function shares its group.
#[test]
fn a_host_that_has_to_be_prepared() {
    const FUNCTION: &str = "sys/bus/pci/devices/0000:00:14.0";
    const MATE: &str = "sys/bus/pci/devices/0000:00:15.0";
    let tree = unpack("lab-amdvi");
    let drivers = |name: &str| format!("../../../../bus/pci/drivers/{name}");
    fs::write(tree.path("usr/bin/qemu-system-x86_64"), "QEMU emulator version 10.0.3\n").unwrap();
    fs::remove_dir_all(tree.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
    fs::remove_dir_all(tree.path("sys/module/vfio_iommu_type1")).unwrap();
    fs::remove_dir_all(tree.path("proc/134")).unwrap();
    let config = tree.path(FUNCTION).join("config");
    let mut bytes = fs::read(&config).unwrap();
    // Two MSI vectors, both enabled: the second message has the next entry of the table.
    bytes[0x42..0x44].copy_from_slice(&[0x93, 0]);
    fs::write(config, bytes).unwrap();
    fs::write(tree.path(FUNCTION).join("msi_irqs/32"), "msi\n").unwrap();
    fs::remove_file(tree.path(FUNCTION).join("driver")).unwrap();
    symlink(drivers("edu"), tree.path(FUNCTION).join("driver")).unwrap();
    fs::create_dir_all(tree.path(MATE)).unwrap();
    symlink(drivers("rtsx_pci"), tree.path(MATE).join("driver")).unwrap();
    symlink(tree.path(MATE), tree.path("sys/kernel/iommu_groups/3/devices/0000:00:15.0")).unwrap();
    assert_eq!(doctor(&tree, &["00:14.0"]).status.code(), Some(3));
    let report = report(&tree, &["00:14.0"]);
    assert_eq!(
        commands(&report),
        [
            "modprobe vfio-pci",
            "apt install -t trixie-backports qemu-system-x86",
            "echo vfio-pci > /sys/bus/pci/devices/0000:00:14.0/driver_override; echo 0000:00:14.0 > \
             /sys/bus/pci/devices/0000:00:14.0/driver/unbind; echo 0000:00:14.0 > /sys/bus/pci/drivers_probe",
            "echo vfio-pci > /sys/bus/pci/devices/0000:00:15.0/driver_override; echo 0000:00:15.0 > \
             /sys/bus/pci/devices/0000:00:15.0/driver/unbind; echo 0000:00:15.0 > /sys/bus/pci/drivers_probe",
        ]
    );
    assert_eq!(report["functions"][0]["facts"]["enabled"][1]["meaning"], "AMD-Vi, table entry 0x1");
}

#[test]
fn a_machine_whose_kernel_does_not_use_its_iommu() {
    let report = says("no-iommu", &[], 3);
    let commands = commands(&report);
    assert_eq!(commands[0], "grubby --update-kernel=ALL --args=intel_iommu=on && reboot");
    assert!(commands.contains(&"sudo vhost-device-irq doctor 0000:02:00.0".to_owned()), "{commands:?}");
    assert_eq!(report["functions"][0]["facts"]["config"]["readable"], 64);
}

#[test]
fn an_arm_host_with_an_its() {
    let report = says("arm64-smmu", &["00:03.0", "00:04.0"], 0);
    assert_eq!(report["functions"][0]["facts"]["enabled"][0]["meaning"], "ITS doorbell 0x8000040, event 0");
    assert_eq!(report["functions"][1]["facts"]["interrupts"]["msix"], 10);
}

/// An ITS has interrupts only while somebody uses some.
#[test]
fn an_arm_host_whose_functions_are_idle() {
    let tree = unpack("arm64-smmu");
    for irq in fs::read_dir(tree.path("sys/kernel/irq")).unwrap().flatten() {
        if fs::read_to_string(irq.path().join("chip_name")).unwrap().starts_with("ITS") {
            fs::remove_dir_all(irq.path()).unwrap();
        }
    }
    let function = "sys/bus/pci/devices/0000:00:03.0";
    fs::remove_dir_all(tree.path(function).join("msi_irqs")).unwrap();
    let output = doctor(&tree, &["00:03.0"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(output).contains("yes, by the ITS /intc@8000000/its@8080000 of the device tree"));
    fs::remove_file(tree.path(function).join("of_node/msi-map")).unwrap();
    assert_eq!(doctor(&tree, &["00:03.0"]).status.code(), Some(4));
}

#[test]
fn a_xen_host_cannot() {
    let report = says("xen-dom0", &["00:05.0", "00:07.0"], 4);
    assert_eq!(report["verdict"], "cannot");
    // What dom0 sees of a function of its own is what Xen programmed.
    let meaning = &report["functions"][1]["facts"]["enabled"][0]["meaning"];
    assert_eq!(meaning, "VT-d remappable, table entry 0x18");
}

#[test]
fn a_dead_card_can_be_looked_for_again() {
    let report = says("dead-device", &[], 3);
    assert_eq!(
        commands(&report),
        ["echo 1 > /sys/bus/pci/devices/0000:02:00.0/remove; sleep 1; echo 1 > /sys/bus/pci/rescan"]
    );
    assert_eq!(report["log"].as_array().unwrap().len(), 2);
}

#[test]
fn remapping_that_was_forbidden_is_allowed_again() {
    let tree = unpack("vtd-laptop");
    let command_line = "BOOT_IMAGE=/vmlinuz ro intel_iommu=on intremap=off\n";
    fs::write(tree.path("proc/cmdline"), command_line).unwrap();
    for chip in fs::read_dir(tree.path("sys/kernel/irq")).unwrap().flatten() {
        fs::write(chip.path().join("chip_name"), "PCI-MSI\n").unwrap();
    }
    let output = doctor(&tree, &[]);
    assert_eq!(output.status.code(), Some(3));
    let commands = commands(&report(&tree, &[]));
    assert_eq!(commands, ["sed -i 's/\\bintremap=off\\b//' /etc/default/grub && update-grub && reboot"]);
    // The same message is another one to hardware that takes it for an interrupt itself.
    assert!(text(output).contains("interrupt remapping is off on this host"));
}

#[test]
fn hardware_that_cannot_remap_is_the_end() {
    let tree = unpack("vtd-laptop");
    fs::remove_dir_all(tree.path("sys/kernel/irq")).unwrap();
    fs::write(tree.path("sys/class/iommu/dmar0/intel-iommu/ecap"), "f050d2\n").unwrap();
    assert_eq!(doctor(&tree, &[]).status.code(), Some(4));
}

#[test]
fn nothing_raw_reaches_the_terminal() {
    let tree = unpack("vtd-laptop");
    let evil = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}";
    fs::write(tree.path("proc/4711/comm"), evil).unwrap();
    fs::write(tree.path("proc/sys/kernel/osrelease"), evil).unwrap();
    fs::write(tree.path("usr/bin/qemu-system-x86_64"), format!("QEMU emulator version 11.1{evil}")).unwrap();
    let line =
        format!("3,1,1,-;DMAR: [INTR-REMAP] {evil} Blocked a compatibility format interrupt request\n");
    fs::write(
        tree.path("dev/kmsg"),
        [line.as_bytes(), b"3,2,3,-;\xff\xfe\x80 No irq handler for\n"].concat(),
    )
    .unwrap();
    for arguments in [&[][..], &["--json"], &["--guest"]] {
        let said = text(doctor(&tree, arguments));
        let raw = said.chars().find(|&character| {
            character != '\n'
                && (character.is_control() || !character.is_ascii() && !character.is_alphanumeric())
        });
        assert_eq!(raw, None, "{said}");
    }
    assert!(text(doctor(&tree, &[])).contains(r"\u{1b}]0;owned\u{7}"));
}

#[test]
fn a_function_that_is_not_there_is_said_to_be_not_there() {
    let tree = unpack("vtd-laptop");
    let output = doctor(&tree, &["0000:7f:1f.7"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(output).contains("there is no PCI function 0000:7f:1f.7 on this host"));
    assert_eq!(doctor(&tree, &["nonsense"]).status.code(), Some(2));
}

#[test]
fn an_empty_machine_is_judged_without_a_word_of_panic() {
    let tree = Tree::unpack("dir sys");
    for arguments in [&[][..], &["--json"], &["--guest"], &["00:01.0"], &["--guest", "00:01.0"]] {
        let output = doctor(&tree, arguments);
        assert!(matches!(output.status.code(), Some(3 | 4)), "{output:?}");
        assert!(output.stderr.is_empty());
    }
}

/// A function that comes and goes while it is looked at: whatever is seen, a report comes out of it.
#[test]
fn a_function_that_leaves_meanwhile_leaves_a_clear_line() {
    let tree = unpack("vtd-laptop");
    let device = tree.path("sys/bus/pci/devices/0000:02:00.0");
    fs::remove_file(device.join("class")).unwrap();
    let said = text(doctor(&tree, &["02:00.0"]));
    assert!(said.contains("it changed while it was looked at"), "{said}");
    assert!(said.contains("class of PCI function 0000:02:00.0"), "{said}");
    fs::write(device.join("class"), "0x028000\n").unwrap();

    let away = tree.path("away");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::rename(&device, &away).unwrap();
                std::thread::yield_now();
                fs::rename(&away, &device).unwrap();
            }
        });
        for _ in 0..40 {
            let output = doctor(&tree, &["02:00.0", "--json"]);
            assert!(matches!(output.status.code(), Some(0 | 3 | 4)), "{output:?}");
            assert!(output.stderr.is_empty(), "{output:?}");
            serde_json::from_slice::<Value>(&output.stdout).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}

mod guest {
    use super::*;

    #[test]
    fn a_guest_whose_driver_asks() {
        let report = says("guest", &["--guest"], 0);
        assert_eq!(report["functions"][0]["facts"]["told by the host"], "address 0xfee00578 data 0x0");
    }

    #[test]
    fn a_guest_with_a_stock_driver() {
        let tree = unpack("guest");
        fs::write(tree.path("proc/kallsyms"), "0000000000000000 t ath11k_pci_probe\t[ath11k_pci]\n").unwrap();
        fs::write(
            tree.path("dev/kmsg"),
            "3,9,9000000,-;ath11k_pci 0000:00:06.0: Service connect timeout\n\
             3,10,9000001,-;ath11k_pci 0000:00:06.0: failed to connect to HTT: -110\n",
        )
        .unwrap();
        assert_eq!(doctor(&tree, &["--guest"]).status.code(), Some(3));
        let report = report(&tree, &["--guest"]);
        assert_eq!(report["functions"][0]["facts"]["asks virtio-irq"], false);
        assert_eq!(report["log"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_guest_without_the_device_or_the_module() {
        let tree = unpack("guest");
        fs::remove_dir_all(tree.path("sys/bus/virtio")).unwrap();
        fs::remove_dir_all(tree.path("sys/module/virtio_irq")).unwrap();
        let commands = commands(&report(&tree, &["--guest"]));
        assert!(commands[0].starts_with("vhost-device-irq qemu-args"), "{commands:?}");
        assert_eq!(commands[1], "modprobe virtio_irq");
    }
}
