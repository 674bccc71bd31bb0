// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon's tests against real VFIO devices, on an emulated host that has such devices.
//!
//! They are a test program of the daemon's own package, because what they look into is its library. Each of its tests is
//! a check here.

use super::{Sabotage, Scenario, Stand};
use crate::artifacts;
use crate::checks::{Unmet, expect};
use crate::error::Result;
use crate::host::{Host, payload};
use crate::iommu::Iommu;
use crate::machine::Machine;
use std::time::Duration;
use virtio_irq_lab_agent::End;

/// The functions that the tests look for. edu's DMA engine is what writes messages.
const FUNCTIONS: &[&str] = &[
    "edu,addr=05.0,dma_mask=0xffffffff",
    "edu,addr=06.0,dma_mask=0xffffffff",
    "nec-usb-xhci,addr=07.0,msi=on,msix=off,intrs=16",
    "igb,addr=08.0",
];

/// Each of the tests starts QEMU twice at most.
const TEST: Duration = Duration::from_secs(120);

/// Output comes at once.
const SOON: Duration = Duration::from_secs(20);

const LISTED: &str = "every-test-is-a-check";

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-vfio-control",
    summary: "the daemon's control over interrupts, on real VFIO devices and beside real VMMs: VT-d, edu, xhci, igb",
    iommu: &Iommu::VTD,
    checks: &[
        LISTED,
        "one-msi-of-edu-arrives-and-is-given-back",
        "devices-of-one-model-are-told-apart",
        "intx-is-taken-from-the-owner-and-stays-masked-until-unmasked",
        "sixteen-contiguous-messages-fire-each-their-own",
        "msix-vectors-of-igb-fire-and-their-table-is-read-through-vfio",
        "what-the-owner-takes-is-noticed-and-left-to-it",
        "the-guests-msi-enable-bit-reaches-the-hardware-and-reads-as-not-enabled",
        "beside-qemu-the-interrupts-are-ours-until-its-guest-wants-them",
        "a-guest-that-enables-msix-takes-igb-from-us",
        "a-killed-qemu-is-noticed-and-the-next-one-served",
        "a-stranger-is-told-what-it-lacks",
        "a-device-that-is-handed-in-is-ours-until-the-connection-ends",
        "a-character-device-is-opened-or-the-kernels-lack-named",
        "what-the-kernel-says-of-a-device",
        "the-daemon-delivers-sixteen-sources-of-xhci",
        "the-daemon-delivers-ten-msix-sources-of-igb",
        "the-daemon-delivers-a-pin",
        "the-daemon-waits-for-qemu-and-yields-to-its-guest",
        "a-device-that-was-lent-to-qemu-delivers-until-qemu-ends",
        "what-the-vmm-took-over-stays-its-own-when-the-guest-frees-at-once",
        "a-guest-that-clears-the-msi-enable-bit-loses-its-sources-aloud",
        "sources-of-a-device-that-was-handed-in-end-with-the-connection",
    ],
    sabotages: &[
        Sabotage {
            name: "no-remapping",
            what: "the host's kernel is told to leave interrupt remapping off, so that no block of messages is to be had",
            fails: "sixteen-contiguous-messages-fire-each-their-own",
        },
        Sabotage {
            name: "one-edu",
            what: "the host lacks the second of two devices of one model",
            fails: "devices-of-one-model-are-told-apart",
        },
        Sabotage {
            name: "no-msi",
            what: "the xhci has MSI-X only",
            fails: "beside-qemu-the-interrupts-are-ours-until-its-guest-wants-them",
        },
        Sabotage {
            name: "no-daemon",
            what: "another program is run in the daemon's place",
            fails: "the-daemon-delivers-sixteen-sources-of-xhci",
        },
    ],
    common: &[],
    unsettled: None,
    limit: Duration::from_secs(800),
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    let tests = artifacts::vfio_tests(stand.layout)?;
    let mut machine = Machine::new(stand.iommu);
    for function in FUNCTIONS {
        match *function {
            function if stand.sabotaged("one-edu") && function.contains("addr=06.0") => {}
            function if stand.sabotaged("no-msi") && function.contains("xhci") => {
                machine = machine.device("nec-usb-xhci,addr=07.0,msi=off,msix=on,intrs=16");
            }
            function => machine = machine.device(function),
        }
    }
    if stand.sabotaged("no-remapping") {
        machine = machine.argument("intremap=off");
    }
    let host = Host::boot(stand.layout, stand.artifacts, SCENARIO.name, &machine, stand.limit)?;
    let log = host.agent().kernel_log();
    let program = tests.to_string_lossy().into_owned();
    let daemon =
        if stand.sabotaged("no-daemon") { "/bin/true".to_owned() } else { payload("vhost-device-irq") };
    let daemon = format!("VHOST_DEVICE_IRQ={daemon}");
    let mut names = Vec::new();
    stand.report.check(LISTED, &log, || {
        let listed = host.agent().run(&[&program, "--list", "--ignored", "--format", "terse"])?;
        names.extend(listed.lines().filter_map(|line| line.strip_suffix(": test")).map(ToOwned::to_owned));
        let unknown = names.iter().filter(|name| !SCENARIO.checks.contains(&check_of(name).as_str()));
        let unknown: Vec<_> = unknown.collect();
        expect(unknown.is_empty(), format!("{} tests; without a check: {unknown:?}", names.len()))
    })?;
    for check in SCENARIO.checks.iter().filter(|check| **check != LISTED) {
        let name = names.iter().find(|name| check_of(name) == *check);
        let name = name.map_or(*check, String::as_str);
        let argv = [
            "/usr/bin/env",
            &daemon,
            &program,
            "--ignored",
            "--exact",
            "--nocapture",
            "--test-threads",
            "1",
            name,
        ];
        let test = host.spawn(check, &argv.map(ToOwned::to_owned))?;
        stand.report.check(check, &test.log(), || match test.wait(TEST)? {
            Some(End::Code(0)) => {
                // A test that is not there passes as well.
                let result = host.agent().output_line(check, "test result: ok. 1 passed", SOON)?;
                Ok(result.split(';').next().unwrap_or_default().to_owned())
            }
            Some(end) => {
                let said = host.agent().output_lines(check, &["panicked", "left:", "right:", "called `"]);
                Err(Unmet::Seen(format!("{end}: {}", said.join("; "))))
            }
            None => {
                test.signal(nix::libc::SIGKILL)?;
                Err(Unmet::Seen(format!("not done after {} s", TEST.as_secs())))
            }
        })?;
    }
    Ok(())
}

/// `module::some_test` is the check `some-test`.
fn check_of(test: &str) -> String {
    test.rsplit("::").next().unwrap_or(test).replace('_', "-")
}
