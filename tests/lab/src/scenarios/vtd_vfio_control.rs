// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon's tests against real VFIO devices, on an emulated host that has such devices.
//!
//! They are a test program of the daemon's own package, because what they look into is its library. Each of its tests is
//! a check here.

use super::{NO_REMAPPING, Sabotage, Scenario, Stand};
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
        "the-daemon-delivers-sixteen-sources-of-xhci",
        "the-daemon-delivers-ten-msix-sources-of-igb",
        "the-daemon-delivers-a-pin",
        "the-daemon-waits-for-qemu-and-yields-to-its-guest",
        "the-daemon-looks-into-a-vmm-of-another-user",
        "a-device-that-was-lent-to-qemu-delivers-until-qemu-ends",
        "what-the-vmm-took-over-stays-its-own-when-the-guest-frees-at-once",
        "a-guest-that-clears-the-msi-enable-bit-loses-its-sources-aloud",
        "sources-of-a-device-that-was-handed-in-end-with-the-connection",
    ],
    sabotages: &[
        Sabotage { name: UNCHECKED, what: "the program has a test more", fails: LISTED },
        stays_listed("one-msi-of-edu-arrives-and-is-given-back"),
        Sabotage {
            name: ONE_EDU,
            what: "the host lacks the second of two devices of one model",
            fails: "devices-of-one-model-are-told-apart",
        },
        stays_listed("intx-is-taken-from-the-owner-and-stays-masked-until-unmasked"),
        Sabotage {
            name: NO_REMAPPING.name,
            what: "the host's kernel is told to leave interrupt remapping off, so that no block of messages is to be had",
            fails: "sixteen-contiguous-messages-fire-each-their-own",
        },
        stays_listed("msix-vectors-of-igb-fire-and-their-table-is-read-through-vfio"),
        owners_hidden("what-the-owner-takes-is-noticed-and-left-to-it"),
        Sabotage {
            name: SHORT_CONFIG,
            what: "the kernel shows only the first 64 bytes of configuration space",
            fails: "the-guests-msi-enable-bit-reaches-the-hardware-and-reads-as-not-enabled",
        },
        Sabotage {
            name: NO_MSI,
            what: "the xhci has MSI-X only",
            fails: "beside-qemu-the-interrupts-are-ours-until-its-guest-wants-them",
        },
        owners_hidden("a-guest-that-enables-msix-takes-igb-from-us"),
        stays_listed("a-killed-qemu-is-noticed-and-the-next-one-served"),
        Sabotage {
            name: PRIVILEGED,
            what: "the stranger may look into any process",
            fails: "a-stranger-is-told-what-it-lacks",
        },
        Sabotage {
            name: NO_PLACE,
            what: "the directory for the socket is not there",
            fails: "a-device-that-is-handed-in-is-ours-until-the-connection-ends",
        },
        Sabotage {
            name: ODD_DEVICES,
            what: "there are directories where the character devices would be",
            fails: "a-character-device-is-opened-or-the-kernels-lack-named",
        },
        no_daemon("the-daemon-delivers-sixteen-sources-of-xhci"),
        stays_listed("the-daemon-delivers-ten-msix-sources-of-igb"),
        stays_listed("the-daemon-delivers-a-pin"),
        owners_hidden("the-daemon-waits-for-qemu-and-yields-to-its-guest"),
        Sabotage {
            name: BLIND_ROOT,
            what: "root may not read what is another user's",
            fails: "the-daemon-looks-into-a-vmm-of-another-user",
        },
        no_daemon("a-device-that-was-lent-to-qemu-delivers-until-qemu-ends"),
        owners_hidden("what-the-vmm-took-over-stays-its-own-when-the-guest-frees-at-once"),
        stays_listed("a-guest-that-clears-the-msi-enable-bit-loses-its-sources-aloud"),
        stays_listed("sources-of-a-device-that-was-handed-in-end-with-the-connection"),
    ],
    common: &[],
    unsettled: None,
    limit: Duration::from_secs(800),
    run,
};

const UNCHECKED: &str = "unchecked-test";
const ONE_EDU: &str = "one-edu";
const NO_MSI: &str = "no-msi";
const STAYS_LISTED: &str = "stays-listed";
const OWNERS_HIDDEN: &str = "owners-hidden";
const SHORT_CONFIG: &str = "short-config";
const PRIVILEGED: &str = "privileged-stranger";
const BLIND_ROOT: &str = "blind-root";
const NO_PLACE: &str = "no-place";
const ODD_DEVICES: &str = "odd-devices";
const NO_DAEMON: &str = "no-daemon";

const fn stays_listed(fails: &'static str) -> Sabotage {
    Sabotage { name: STAYS_LISTED, what: "/proc/interrupts has a vector of each function for ever", fails }
}

const fn owners_hidden(fails: &'static str) -> Sabotage {
    Sabotage { name: OWNERS_HIDDEN, what: "/proc/irq is empty, which shows who has a vector", fails }
}

const fn no_daemon(fails: &'static str) -> Sabotage {
    Sabotage { name: NO_DAEMON, what: "another program is run in the daemon's place", fails }
}

/// What runs a test in a world that the sabotage changed.
fn world(stand: &Stand<'_>) -> &'static [&'static str] {
    match stand.sabotage.map(|sabotage| sabotage.name) {
        // VFIO gives no device at all otherwise.
        Some(name) if name == NO_REMAPPING.name => &[
            "sh",
            "-c",
            "echo Y >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts && exec \"$@\"",
            "sh",
        ],
        Some(STAYS_LISTED) => &[
            "unshare",
            "--mount",
            "sh",
            "-c",
            "printf '1: vfio-%s\\n' 'msi[0](0000:00:05.0)' 'msi[0](0000:00:07.0)' 'msix[0](0000:00:08.0)' >/run/listed \\
                && mount --bind /run/listed /proc/interrupts && exec \"$@\"",
            "sh",
        ],
        Some(OWNERS_HIDDEN) => {
            &["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /proc/irq && exec \"$@\"", "sh"]
        }
        // Beyond the header it is for those who administrate.
        Some(SHORT_CONFIG) => &["setpriv", "--bounding-set=-sys_admin"],
        Some(BLIND_ROOT) => &["setpriv", "--bounding-set=-dac_override,-dac_read_search"],
        // Kept over a change of the user.
        Some(PRIVILEGED) => &[
            "setpriv",
            "--securebits=+no_setuid_fixup",
            "--inh-caps=+sys_ptrace,+dac_read_search",
            "--ambient-caps=+sys_ptrace,+dac_read_search",
        ],
        Some(NO_PLACE) => &["env", "TMPDIR=/nowhere"],
        Some(ODD_DEVICES) => {
            &["sh", "-c", "mkdir -p /dev/vfio/devices/vfio0 /dev/vfio/devices/vfio1 && exec \"$@\"", "sh"]
        }
        _ => &[],
    }
}

fn run(stand: &mut Stand<'_>) -> Result<()> {
    let tests = artifacts::vfio_tests(stand.layout)?;
    let mut machine = Machine::new(stand.iommu);
    for function in FUNCTIONS {
        match *function {
            function if stand.sabotaged(ONE_EDU) && function.contains("addr=06.0") => {}
            function if stand.sabotaged(NO_MSI) && function.contains("xhci") => {
                machine = machine.device("nec-usb-xhci,addr=07.0,msi=off,msix=on,intrs=16");
            }
            function => machine = machine.device(function),
        }
    }
    if stand.sabotaged(NO_REMAPPING.name) {
        machine = machine.argument("intremap=off");
    }
    let host = Host::boot(stand.layout, stand.artifacts, SCENARIO.name, &machine, stand.limit)?;
    let log = host.agent().kernel_log();
    let program = tests.to_string_lossy().into_owned();
    let daemon =
        if stand.sabotaged(NO_DAEMON) { "/bin/true".to_owned() } else { payload("vhost-device-irq") };
    let daemon = format!("VHOST_DEVICE_IRQ={daemon}");
    let mut names = Vec::new();
    let more = stand.sabotaged(UNCHECKED).then_some("main::another_test");
    stand.report.check(LISTED, &log, || {
        let listed = host.agent().run(&[&program, "--list", "--ignored", "--format", "terse"])?;
        let listed = listed.lines().filter_map(|line| line.strip_suffix(": test"));
        names.extend(listed.chain(more).map(ToOwned::to_owned));
        let unknown = names.iter().filter(|name| !SCENARIO.checks.contains(&check_of(name).as_str()));
        let unknown: Vec<_> = unknown.collect();
        expect(unknown.is_empty(), format!("{} tests; without a check: {unknown:?}", names.len()))
    })?;
    let concerned = stand.sabotage.map(|sabotage| sabotage.fails);
    let tests = SCENARIO.checks.iter().filter(|check| **check != LISTED);
    for check in tests.filter(|check| concerned.is_none_or(|concerned| concerned == **check)) {
        let name = names.iter().find(|name| check_of(name) == *check);
        let name = name.map_or(*check, String::as_str);
        let test = ["/usr/bin/env", &daemon, &program, "--ignored", "--exact", "--nocapture", name];
        let argv: Vec<_> = world(stand).iter().chain(&test).map(|word| (*word).to_owned()).collect();
        let test = host.spawn(check, &argv)?;
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
