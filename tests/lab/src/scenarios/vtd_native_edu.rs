// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Native delivery behind an Intel IOMMU: a guest that programs the pair of its own MSI capability into the device hears
//! nothing, one that asks virtio-irq hears every interrupt.
//!
//! QEMU's edu device writes any bytes to any address by its DMA engine, and an MSI is such a write. So edu is a device that
//! keeps its message in registers of its own, like the Wi-Fi cards that virtio-irq is for.

use super::doctor;
use super::edu::Edu;
use super::{Sabotage, Scenario, Stand};
use crate::agent::Agent;
use crate::checks::{Report, Row, Unmet, Verdict, expect};
use crate::error::{Error, Result};
use crate::host::{Holdings, Host, Process, RunningGuest, payload};
use crate::machine::{Guest, Machine};
use crate::msi::Pair;
use nix::libc::{EAGAIN, ENODEV, SIGTERM};
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use virtio_irq_lab_agent::{End, Operation};

/// The function on the host.
const FUNCTION: &str = "0000:00:05.0";

/// Where the guest sees it.
const SLOT: &str = "06.0";
const GUEST_FUNCTION: &str = "0000:00:06.0";

const SOCKET: &str = "/run/virtio-irq.sock";

/// A vector that no interrupt of the host uses. QEMU's VT-d lets a message in compatibility format through to the processor,
/// where real hardware would block it; there the kernel says that it has no handler.
const UNUSED_VECTOR: Pair = Pair { address: 0xfee0_0000, data: 0x99 };
const UNUSED_VECTOR_LOG: &str = "No irq handler for 0.153";

/// What a kernel logs when something is wrong with it.
const TROUBLE: &[&str] = &["WARNING:", "BUG:", "Oops", "Kernel panic", "Call Trace:", "fault reason"];

/// How many interrupts are sent where many are, and where a few are enough. edu takes a tenth of a second for each.
const MANY: u64 = 100;
const FEW: u64 = 3;

const REBOOTS: usize = 3;

/// The daemon is to leave at once.
const LEAVE: Duration = Duration::from_secs(20);

/// Enough for anything that the daemon or a kernel does by itself.
const SOON: Duration = Duration::from_secs(30);

/// Enough for a guest's kernel to panic and start again.
const RESTART: Duration = Duration::from_secs(150);

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-native-edu",
    summary: "a guest gets its real MSI pair: VT-d, vfio-pci, KVM, the kernel module and QEMU's edu device",
    checks: &[
        "host-remaps-interrupts",
        "doctor-says-works",
        "no-device-no-answer",
        "guest-pair-is-fiction",
        "guest-pair-runs-no-handler",
        "guest-pair-ends-in-the-host",
        "doctor-sees-the-pair",
        "doctor-in-the-guest",
        "told-pair-is-the-hosts",
        "each-interrupt-runs-the-handler-once",
        "refused-before-enable",
        "works-after-enabling-again",
        "driver-unbinds-and-binds",
        "reboot-1-is-served",
        "reboot-2-is-served",
        "reboot-3-is-served",
        "guest-kernel-is-well",
        "next-frontend-is-served",
        "daemon-leaks-nothing",
        "daemon-leaves-cleanly",
        "host-kernel-is-well",
    ],
    sabotages: &[
        Sabotage {
            name: "no-remapping",
            what: "the host's kernel is told to leave interrupt remapping off",
            fails: "host-remaps-interrupts",
        },
        Sabotage {
            name: "nothing-to-remap",
            what: "the host's kernel leaves interrupt remapping off, and the doctor has to say so",
            fails: "doctor-says-works",
        },
        Sabotage {
            name: "doctor-too-early",
            what: "the doctor looks at the guest's pair after the guest gave its vector back",
            fails: "doctor-sees-the-pair",
        },
        Sabotage {
            name: "doctor-sees-no-driver",
            what: "the guest's module is unbound from the device while the doctor looks at it from inside",
            fails: "doctor-in-the-guest",
        },
        Sabotage {
            name: "device-too-early",
            what: "the guest that shall have no virtio-irq device has one",
            fails: "no-device-no-answer",
        },
        Sabotage {
            name: "true-pair-too-early",
            what: "the guest without virtio-irq programs the host's pair, as if it knew it",
            fails: "guest-pair-runs-no-handler",
        },
        Sabotage {
            name: "silent-vector",
            what: "the device does not write the pair whose vector the host does not use",
            fails: "guest-pair-ends-in-the-host",
        },
        Sabotage {
            name: "simulated-pair",
            what: "the daemon tells the pair of a simulated function",
            fails: "told-pair-is-the-hosts",
        },
        Sabotage {
            name: "lost-interrupt",
            what: "the device sends one interrupt less than counted",
            fails: "each-interrupt-runs-the-handler-once",
        },
        Sabotage {
            name: "doubled-interrupt",
            what: "the device sends one interrupt more than counted",
            fails: "each-interrupt-runs-the-handler-once",
        },
        Sabotage {
            name: "keep-enabled",
            what: "the guest leaves MSI enabled when it should disable it",
            fails: "refused-before-enable",
        },
        Sabotage {
            name: "forget-to-ask",
            what: "after enabling MSI again the guest programs its own pair",
            fails: "works-after-enabling-again",
        },
        Sabotage {
            name: "keep-bound",
            what: "the guest's virtio-irq driver is not unbound",
            fails: "driver-unbinds-and-binds",
        },
        Sabotage {
            name: "no-driver-after-reboot",
            what: "from the second reboot on the guest does not load the virtio-irq driver",
            fails: "reboot-2-is-served",
        },
        Sabotage {
            name: "guest-warns",
            what: "the guest's kernel panics at the end",
            fails: "guest-kernel-is-well",
        },
        Sabotage {
            name: "stopped-daemon",
            what: "the daemon is stopped before the next frontend comes",
            fails: "next-frontend-is-served",
        },
        Sabotage {
            name: "lingering-frontend",
            what: "a frontend stays connected where all should be gone",
            fails: "daemon-leaks-nothing",
        },
        Sabotage {
            name: "killed-daemon",
            what: "the daemon gets SIGKILL instead of SIGTERM",
            fails: "daemon-leaves-cleanly",
        },
        Sabotage {
            name: "host-warns",
            what: "a line that looks like a kernel warning is written to the host's log",
            fails: "host-kernel-is-well",
        },
    ],
    limit: Duration::from_secs(600),
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    let mut machine = Machine::vtd().device("edu,addr=05.0,dma_mask=0xffffffff");
    if stand.sabotaged("no-remapping") || stand.sabotaged("nothing-to-remap") {
        machine = machine.argument("intremap=off");
    }
    let host = Host::boot(stand.layout, stand.artifacts, SCENARIO.name, &machine, stand.limit)?;
    let result = play(stand, &host);
    if matches!(result, Err(Error::Late { .. })) {
        host.log_what_hangs();
    }
    result
}

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    host_is_fit(stand.report, host)?;
    stand.report.check("doctor-says-works", &host.agent().kernel_log(), || {
        doctor::examine(host.agent(), &[FUNCTION])?.works()
    })?;
    if stand.sabotaged("device-too-early") {
        let early = start_daemon(host, FUNCTION)?;
        without_virtio_irq(stand, host, guest_with_device(host)?)?;
        stop(&early)?;
    } else {
        without_virtio_irq(stand, host, Guest::with_function(FUNCTION, SLOT))?;
    }

    let simulated = stand.sabotaged("simulated-pair");
    let daemon = start_daemon(host, if simulated { "sim:edu" } else { FUNCTION })?;
    let before = daemon.holdings()?;
    with_virtio_irq(stand, host)?;
    next_frontend(stand, host, &daemon)?;
    daemon_leaks_nothing(stand, host, &daemon, before)?;
    daemon_leaves(stand, &daemon)?;
    host_kernel_is_well(stand, host)
}

/// The ground that everything stands on: without remapping there would be no fiction to see through.
fn host_is_fit(report: &mut Report, host: &Host) -> Result<()> {
    let agent = host.agent();
    report.check("host-remaps-interrupts", &agent.kernel_log(), || {
        host.bind_to_vfio(FUNCTION)?;
        let driver = agent.link(&format!("/sys/bus/pci/devices/{FUNCTION}/driver"))?;
        let group = agent.link(&format!("/sys/bus/pci/devices/{FUNCTION}/iommu_group"))?;
        let remapping = agent.kernel_lines(&["Enabled IRQ remapping"]);
        let mode = remapping.first().map_or("no interrupt remapping", String::as_str);
        let seen = format!("{}; {FUNCTION} has driver {driver}, IOMMU group {group}", text_of(mode));
        expect(driver == "vfio-pci" && !remapping.is_empty(), seen)
    })
}

/// The bug: the guest has only its own pair.
fn without_virtio_irq(stand: &mut Stand<'_>, host: &Host, description: Guest) -> Result<()> {
    let guest = start_guest(host, "qemu-without", &description)?;
    let log = guest.agent().kernel_log();
    let edu = Edu::new(guest.agent(), GUEST_FUNCTION);
    stand.report.check("no-device-no-answer", &log, || match edu.host_pair() {
        Ok((pair, _)) => Err(Unmet::Seen(format!("told {pair}, in a guest without virtio-irq"))),
        Err(error) => expect(error.errno() == Some(ENODEV), format!("{error}")),
    })?;

    let (guest_pair, host_pair) = (edu.guest_pair()?, host.msi(FUNCTION)?);
    stand.report.check("guest-pair-is-fiction", &log, || {
        let seen = format!("guest sees {guest_pair}, host has {}", host_pair.pair);
        expect(host_pair.enabled && host_pair.pair != guest_pair, seen)
    })?;

    let programmed =
        if stand.sabotaged("true-pair-too-early") { host_pair.pair.to_string() } else { "guest".to_owned() };
    let mut shot = Shot::default();
    stand.report.check("guest-pair-runs-no-handler", &log, || {
        shot.take(host, guest.agent(), &programmed, 1)?;
        expect(shot.handled == 0, shot.to_string())
    })?;

    let silent = stand.sabotaged("silent-vector");
    let host_log = host.agent().kernel_log();
    stand.report.check("guest-pair-ends-in-the-host", &host_log, || {
        let mark = host.agent().kernel_mark();
        let pair = edu.program(&UNUSED_VECTOR.to_string())?;
        let handled = if silent { 0 } else { edu.fire(1)? };
        match host.agent().kernel_line(mark, UNUSED_VECTOR_LOG, SOON) {
            Ok(line) => {
                let line = text_of(&line);
                expect(
                    handled == 0,
                    format!("{pair} written once, handler ran {handled} times; host: {line}"),
                )
            }
            // That it does not come is a finding; the host is well.
            Err(Error::Late { .. }) => {
                Err(Unmet::Seen(format!("{pair} written once, the host logged no {UNUSED_VECTOR_LOG:?}")))
            }
            Err(error) => Err(error.into()),
        }
    })?;
    stand.report.row(shot.row("without virtio-irq"));
    power_off(guest)
}

/// The cure, and that it lasts: over disabling and enabling, the driver's own going and coming, and reboots.
fn with_virtio_irq(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let guest = start_guest(host, "qemu-with", &guest_with_device(host)?)?;
    let log = guest.agent().kernel_log();
    doctor_looks(stand, host, &guest)?;
    pair_is_told(stand, host, &guest)?;
    enabling_again(stand, host, &guest)?;
    driver_comes_and_goes(stand, host, &guest)?;
    for (number, name) in
        (1..=REBOOTS).zip(["reboot-1-is-served", "reboot-2-is-served", "reboot-3-is-served"])
    {
        guest.reboot()?;
        load_modules(guest.agent(), !(stand.sabotaged("no-driver-after-reboot") && number >= 2))?;
        let mut shot = Shot::default();
        stand.report.check(name, &log, || shot.arrive(host, guest.agent(), "host", FEW, FEW))?;
        stand.report.row(shot.row(&format!("after reboot {number}")));
    }
    if stand.sabotaged("guest-warns") {
        guest.agent().tell(Operation::Write { path: "/proc/sysrq-trigger".into(), data: "c".into() })?;
        // Its panic is a reboot, and that is what has to be seen.
        guest.agent().started(guest.agent().start_count() + 1, RESTART)?;
    }
    stand.report.check("guest-kernel-is-well", &log, || {
        // The guest before this one, this one, and its reboots. A panic would have made another.
        let (starts, planned) = (guest.agent().start_count(), 1 + 1 + REBOOTS);
        let trouble = guest.agent().kernel_lines(TROUBLE);
        let seen = match trouble.first() {
            Some(line) => format!("{starts} starts, {planned} planned; {}", text_of(line)),
            None => format!("{starts} starts, {planned} planned; no warning, which would have been a panic"),
        };
        expect(starts == planned && trouble.is_empty(), seen)
    })?;
    power_off(guest)
}

/// The doctor on the host names the guest's QEMU and the pair; the one in the guest finds the device and who asks it.
fn doctor_looks(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let edu = Edu::new(guest.agent(), GUEST_FUNCTION);
    let early = stand.sabotaged("doctor-too-early");
    stand.report.check("doctor-sees-the-pair", &host.agent().kernel_log(), || {
        if early {
            edu.enable_msi(false)?;
        }
        let found = doctor::examine(host.agent(), &[FUNCTION]);
        if early {
            edu.enable_msi(true)?;
        }
        let pair = host.msi(FUNCTION)?.pair;
        found?.sees(pair, "qemu-system-x86")
    })?;
    let driver = "/sys/bus/virtio/drivers/virtio_irq";
    let unbound = stand.sabotaged("doctor-sees-no-driver");
    let device = guest
        .agent()
        .list(driver)?
        .into_iter()
        .find(|name| name.starts_with("virtio") && name != "virtio_irq");
    stand.report.check("doctor-in-the-guest", &guest.agent().kernel_log(), || {
        let device = device.unwrap_or_default();
        if unbound {
            guest.agent().write(&format!("{driver}/unbind"), &device)?;
        }
        let found = doctor::examine(guest.agent(), &["--guest", GUEST_FUNCTION]);
        if unbound {
            guest.agent().write(&format!("{driver}/bind"), &device)?;
        }
        found?.works()
    })
}

fn pair_is_told(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let log = guest.agent().kernel_log();
    let edu = Edu::new(guest.agent(), GUEST_FUNCTION);
    stand.report.check("told-pair-is-the-hosts", &log, || {
        let (told, generation) = edu.host_pair()?;
        let there = host.msi(FUNCTION)?;
        let seen = format!(
            "told {told} (generation {generation}), the host's configuration space has {}",
            there.pair
        );
        expect(there.enabled && told == there.pair, seen)
    })?;

    let sent = match () {
        () if stand.sabotaged("lost-interrupt") => MANY - 1,
        () if stand.sabotaged("doubled-interrupt") => MANY + 1,
        () => MANY,
    };
    let mut shot = Shot::default();
    stand.report.check("each-interrupt-runs-the-handler-once", &log, || {
        shot.arrive(host, guest.agent(), "host", sent, MANY)
    })?;
    stand.report.row(shot.row("with virtio-irq"));
    Ok(())
}

fn enabling_again(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let log = guest.agent().kernel_log();
    let edu = Edu::new(guest.agent(), GUEST_FUNCTION);
    let keep = stand.sabotaged("keep-enabled");
    stand.report.check("refused-before-enable", &log, || {
        if !keep {
            edu.enable_msi(false)?;
        }
        match edu.host_pair() {
            Ok((pair, _)) => Err(Unmet::Seen(format!("told {pair} for a vector that is not enabled"))),
            Err(error) => expect(error.errno() == Some(EAGAIN), format!("{error}")),
        }
    })?;
    let program = if stand.sabotaged("forget-to-ask") { "guest" } else { "host" };
    let mut shot = Shot::default();
    stand.report.check("works-after-enabling-again", &log, || {
        edu.enable_msi(true)?;
        shot.arrive(host, guest.agent(), program, FEW, FEW)
    })?;
    stand.report.row(shot.row("MSI off and on again"));
    Ok(())
}

/// The virtio-irq driver leaves the device while the client stays, and comes back.
fn driver_comes_and_goes(stand: &mut Stand<'_>, host: &Host, guest: &RunningGuest) -> Result<()> {
    let agent = guest.agent();
    let edu = Edu::new(agent, GUEST_FUNCTION);
    let driver = "/sys/bus/virtio/drivers/virtio_irq";
    let keep = stand.sabotaged("keep-bound");
    stand.report.check("driver-unbinds-and-binds", &agent.kernel_log(), || {
        let bound = agent.list(driver)?;
        let device = bound.iter().find(|name| name.starts_with("virtio") && *name != "virtio_irq");
        let device = device.ok_or_else(|| Unmet::Seen(format!("{driver} has no device")))?;
        if !keep {
            agent.write(&format!("{driver}/unbind"), device)?;
        }
        let between = match edu.host_pair() {
            Ok((pair, _)) => return Err(Unmet::Seen(format!("told {pair} without a driver"))),
            Err(error) if error.errno() == Some(ENODEV) => "ENODEV without it",
            Err(error) => return Err(error.into()),
        };
        agent.write(&format!("{driver}/bind"), device)?;
        let after = Shot::default().arrive(host, agent, "host", FEW, FEW)?;
        Ok(format!("{device}: {between}; bound again: {after}"))
    })
}

/// Another QEMU, another connection, the same daemon.
fn next_frontend(stand: &mut Stand<'_>, host: &Host, daemon: &Process) -> Result<()> {
    if stand.sabotaged("stopped-daemon") {
        daemon.signal(nix::libc::SIGSTOP)?;
    }
    let mut shot = Shot::default();
    stand.report.check("next-frontend-is-served", &daemon.log(), || {
        let guest = start_guest(host, "qemu-next", &guest_with_device(host)?)?;
        let verdict = shot.arrive(host, guest.agent(), "host", FEW, FEW);
        power_off(guest)?;
        verdict
    })?;
    stand.report.row(shot.row("another VM, same daemon"));
    Ok(())
}

fn daemon_leaks_nothing(
    stand: &mut Stand<'_>,
    host: &Host,
    daemon: &Process,
    before: Holdings,
) -> Result<()> {
    if stand.sabotaged("lingering-frontend") {
        host.agent().perform(Operation::Connect { path: SOCKET.into() })?;
        host.agent().output_line_after("daemon", FRONTENDS, "a frontend connected", SOON)?;
    }
    stand.report.check("daemon-leaks-nothing", &daemon.log(), || {
        // It says so when it has put a frontend's things away.
        host.agent().output_line_after("daemon", FRONTENDS - 1, "the frontend left", SOON)?;
        let after = daemon.holdings()?;
        expect(after == before, format!("before the first frontend {before}, after the last {after}"))
    })
}

/// The guest whose pair is told, and the next.
const FRONTENDS: usize = 2;

fn daemon_leaves(stand: &mut Stand<'_>, daemon: &Process) -> Result<()> {
    let signal = if stand.sabotaged("killed-daemon") { nix::libc::SIGKILL } else { SIGTERM };
    stand.report.check("daemon-leaves-cleanly", &daemon.log(), || {
        let start = Instant::now();
        daemon.signal(signal)?;
        let end = daemon.wait(LEAVE)?;
        let milliseconds = start.elapsed().as_millis();
        match end {
            Some(end) => expect(end == End::Code(0), format!("{end} after {milliseconds} ms")),
            None => Err(Unmet::Seen(format!("still there {milliseconds} ms after SIGTERM"))),
        }
    })
}

fn host_kernel_is_well(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let agent = host.agent();
    if stand.sabotaged("host-warns") {
        // Without the newline the kernel holds the line back, for more of it.
        agent.write("/dev/kmsg", "WARNING: this is sabotage\n")?;
        agent.kernel_line(0, "this is sabotage", SOON)?;
    }
    stand.report.check("host-kernel-is-well", &agent.kernel_log(), || {
        let trouble = agent.kernel_lines(TROUBLE);
        let seen = trouble.first().map_or("no warning, no fault of the IOMMU", |line| text_of(line));
        expect(trouble.is_empty(), seen)
    })
}

/// The device sends interrupts, and everything that counts them is read.
#[derive(Default)]
struct Shot {
    guest_pair: Option<Pair>,
    host_pair: Option<Pair>,
    written: Option<Pair>,
    sent: u64,
    handled: u64,
    guest_count: u64,
    host_count: u64,
}

impl Shot {
    /// Programs `what` into the device, which sends `sent` interrupts.
    fn take(&mut self, host: &Host, guest: &Agent, what: &str, sent: u64) -> Result<()> {
        let edu = Edu::new(guest, GUEST_FUNCTION);
        self.guest_pair = Some(edu.guest_pair()?);
        self.written = Some(edu.program(what)?);
        self.host_pair = Some(host.msi(FUNCTION)?.pair);
        let (host_before, guest_before) = (host.vfio_interrupts(FUNCTION)?, guest_interrupts(guest)?);
        self.sent = sent;
        self.handled = edu.fire(sent)?;
        self.host_count = host.vfio_interrupts(FUNCTION)?.wrapping_sub(host_before);
        self.guest_count = guest_interrupts(guest)?.wrapping_sub(guest_before);
        Ok(())
    }

    /// As [`Shot::take`]; and `counted` interrupts must have arrived by everyone's count, with the pair that the host has.
    fn arrive(&mut self, host: &Host, guest: &Agent, what: &str, sent: u64, counted: u64) -> Verdict {
        self.take(host, guest, what, sent)?;
        let counts = [self.handled, self.guest_count, self.host_count];
        let seen = format!("{self}; {counted} expected");
        expect(self.written == self.host_pair && counts.iter().all(|count| *count == counted), seen)
    }

    fn row(&self, situation: &str) -> Row {
        Row {
            situation: situation.into(),
            function: GUEST_FUNCTION.into(),
            vector: "MSI 0".into(),
            guest_pair: shown(self.guest_pair),
            host_pair: shown(self.host_pair),
            written: shown(self.written),
            sent: self.sent,
            handled: self.handled,
            outcome: match (self.sent, self.handled) {
                (0, _) => "nothing was sent",
                (_, 0) => "never arrived",
                (sent, handled) if sent == handled => "every one arrived",
                _ => "not as many as were sent",
            }
            .into(),
        }
    }
}

impl fmt::Display for Shot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, handled, guest_count, host_count, .. } = self;
        let written = shown(self.written);
        write!(
            f,
            "{written} written {sent} times; handler ran {handled}, guest counted {guest_count}, host {host_count}"
        )
    }
}

fn shown(pair: Option<Pair>) -> String {
    pair.map_or_else(|| "-".to_owned(), |pair| pair.to_string())
}

fn guest_interrupts(guest: &Agent) -> Result<u64> {
    Ok(crate::interrupts(&guest.read("/proc/interrupts")?, "virtio_irq_edu"))
}

fn start_daemon(host: &Host, device: &str) -> Result<Process> {
    let device = format!("{device},guest={}", GUEST_FUNCTION.trim_start_matches("0000:"));
    let argv =
        [payload("vhost-device-irq"), "--socket-path".into(), SOCKET.into(), "--device".into(), device];
    let daemon = host.spawn("daemon", &argv)?;
    host.agent().output_line("daemon", "waiting for a frontend", SOON)?;
    Ok(daemon)
}

fn stop(daemon: &Process) -> Result<()> {
    daemon.signal(SIGTERM)?;
    daemon.wait(LEAVE).map(drop)
}

/// A guest with the virtio-irq device, in the words of the daemon.
fn guest_with_device(host: &Host) -> Result<Guest> {
    let guest = Guest::with_function(FUNCTION, SLOT);
    let memory = format!("{}M", guest.memory);
    let daemon = payload("vhost-device-irq");
    let lines = host.agent().run(&[
        &daemon,
        "qemu-args",
        "--socket-path",
        SOCKET,
        "--memory",
        &memory,
        "--format",
        "lines",
    ])?;
    Ok(guest.with(lines.lines().map(str::to_owned)))
}

fn start_guest(host: &Host, name: &str, description: &Guest) -> Result<RunningGuest> {
    let guest = host.start_guest(name, description)?;
    load_modules(guest.agent(), true)?;
    Ok(guest)
}

fn load_modules(guest: &Agent, driver: bool) -> Result<()> {
    let load =
        |name: &str| guest.perform(Operation::LoadModule { name: name.into(), parameters: String::new() });
    if driver {
        load("virtio_irq")?;
    }
    load("virtio_irq_edu")
}

fn power_off(guest: RunningGuest) -> Result<()> {
    let log: PathBuf = guest.qemu().log();
    match guest.power_off()? {
        End::Code(0) => Ok(()),
        end => Err(Error::Gone { machine: "the guest's QEMU".into(), why: end.to_string(), log }),
    }
}

/// A line of a kernel's log without its time.
fn text_of(line: &str) -> &str {
    line.split_once("] ").map_or(line, |(_, text)| text)
}
