// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel module against a device that lies: a guest's own kernel has to stay well whatever a host tells it, and has to work
//! with the truth afterwards.
//!
//! The machine is the guest here, without a host below it. Its virtio-irq device is a program that is written from the
//! specification alone, and that tells one lie after the other while the module and its clients go through everything that they
//! do. What they answer to a lie is open; that they answer is not.

use super::functions::Function;
use super::kernels::{Driver, HOST_WARNS, VIRTIO_IRQ, host_is_well, load_in, unload_in};
use super::vectors::{self, Vectors, raise_each};
use super::{Sabotage, Scenario, Stand};
use crate::agent::Agent;
use crate::checks::{Unmet, Verdict, expect};
use crate::companion::Companion;
use crate::error::{At, Error, Result};
use crate::host::Host;
use crate::iommu::Iommu;
use crate::layout::Layout;
use crate::machine::Machine;
use crate::program;
use std::fs;
use std::process::Command;
use std::time::Duration;

/// The modules.
const MODULES: &[&str] = &[VIRTIO_IRQ, vectors::MODULE];

/// How long the module waits for an answer, in ms: of a device that lies, many never come; one that tells the truth is a program on
/// a machine that has other things to do too.
const TIMEOUT: &str = "/sys/module/virtio_irq/parameters/timeout_ms";
const LYING_MS: &str = "300";
const TRUTHFUL_MS: &str = "10000";

/// The program, in the workspace.
const LIAR: &str = "tests/interop/liar.py";

const SOCKET: &str = "device.sock";

/// One whose vectors virtio-irq delivers, and one that has its own vector and asks for its message: functions 3 and 4 of the
/// device. QEMU's edu does nothing by itself.
const SOURCES: Function = Function::alone("edu,addr=09.0", "0000:00:09.0");
const NATIVE: Function = Function::alone("edu,addr=0a.0", "0000:00:0a.0");

/// Vectors that are allocated. The function has more, so that a lie about them can be told.
const HELD: usize = 8;

/// Lies that are told one after the other.
struct Kind {
    check: &'static str,
    lies: &'static [&'static str],
    /// Whether the driver hears them when it binds.
    when_binding: bool,
}

const KINDS: &[Kind] = &[
    Kind {
        check: "survives-lying-replies",
        lies: &[
            "noise",
            "flipped-bit",
            "cut",
            "status",
            "refusal-with-a-body",
            "count",
            "more-than-asked",
            "one-id-for-all",
            "ids-out-of-range",
            "ids-of-others",
            "other-vectors",
            "one-vector-for-all",
            "endless-list",
            "nothing-used",
            "all-bits-used",
            "one-more-used",
            "head-alone-used",
            "half-used",
        ],
        when_binding: false,
    },
    Kind {
        check: "survives-lying-rings",
        lies: &[
            "twice",
            "no-such-chain",
            "just-beyond",
            "another-chain",
            "index-ahead",
            "index-behind",
            "empty-notifications",
            "event-buffer-twice",
            "event-buffer-no-such-chain",
            "event-buffer-just-beyond",
            "event-buffer-another-chain",
            "event-buffer-index-ahead",
            "event-buffer-index-behind",
        ],
        when_binding: false,
    },
    Kind {
        check: "survives-lying-events",
        lies: &[
            "event-noise",
            "near-noise",
            "any-interrupt",
            "interrupts-of-another-function",
            "any-revocation",
            "any-change",
            "everything-gone",
            "revoked-and-fired",
            "odd-event-lengths",
        ],
        when_binding: false,
    },
    Kind {
        check: "survives-lying-configurations",
        lies: &[
            "other-magic",
            "no-version",
            "later-version",
            "no-sources",
            "all-sources",
            "no-vectors",
            "all-vectors",
            "all-bits",
            "no-bits",
        ],
        when_binding: true,
    },
    Kind { check: "survives-silence", lies: &["silence"], when_binding: false },
];

const UNLOADS: &str = "modules-unload";

pub(super) const SCENARIO: Scenario = Scenario {
    name: "guest-hostile-device",
    summary: "the kernel module stays well with a device that lies, and works when it stops lying: no host, a device in Python",
    // Its machine has none.
    iommu: &Iommu::VTD,
    checks: &[
        "survives-lying-replies",
        "survives-lying-rings",
        "survives-lying-events",
        "survives-lying-configurations",
        "survives-silence",
        UNLOADS,
        HOST_WARNS.fails,
    ],
    sabotages: &[
        Sabotage {
            name: "lie-on",
            what: "the device goes on to lie when it is to be truthful",
            fails: "survives-lying-replies",
        },
        Sabotage {
            name: "stay-bound",
            what: "the driver stays bound to a device whose ring it gave up",
            fails: "survives-lying-rings",
        },
        Sabotage { name: "tell-no-lie", what: "the device tells the truth", fails: "survives-lying-events" },
        Sabotage {
            name: "bound-before",
            what: "the driver does not bind while the lie is told",
            fails: "survives-lying-configurations",
        },
        Sabotage { name: "stay-silent", what: "the silence does not end", fails: "survives-silence" },
        Sabotage { name: "keep-client", what: "a client of the module stays loaded", fails: UNLOADS },
        HOST_WARNS,
    ],
    common: &[],
    unsettled: None,
    limit: Duration::from_secs(400),
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    let inside = Layout::images(SCENARIO.name);
    let directory = stand.layout.outside(&inside);
    fs::create_dir_all(&directory).at(&directory)?;
    let socket = directory.join(SOCKET);
    if socket.exists() {
        fs::remove_file(&socket).at(&socket)?;
    }
    let log = stand.layout.logs(SCENARIO.name).with_extension("device.log");
    let program = stand.layout.workspace().join(LIAR).display().to_string();
    // Its path may be longer than a socket's can be.
    let device = Companion::start_here(&directory, &["python3", &program, SOCKET], "listening", &log)?;

    let mut machine = [SOURCES, NATIVE].iter().fold(Machine::bare(), |machine, it| it.add_to(machine));
    machine = machine.carrying(&stand.artifacts.guest);
    let memory = format!("{}M", machine.memory());
    let mut words = Command::new(&stand.artifacts.daemon);
    words
        .args(["qemu-args", "--format", "lines", "--memory", &memory, "--socket-path"])
        .arg(inside.join(SOCKET));
    let words = program::output("qemu-args", &mut words, &log)?;
    let machine = machine.with(String::from_utf8_lossy(&words).lines().map(str::to_owned));
    stand.on_any(SCENARIO.name, &machine, |stand, guest| play(stand, guest, &device))
}

fn play(stand: &mut Stand<'_>, guest: &Host, device: &Companion) -> Result<()> {
    let agent = guest.agent();
    load_in(agent, MODULES)?;
    let clients = Clients {
        agent,
        device,
        driver: Driver::find(agent)?,
        sources: Vectors::bind(agent, SOURCES)?,
        native: Vectors::bind(agent, NATIVE)?,
    };
    clients.native.enable("msi 1")?;
    for kind in KINDS {
        let honest =
            stand.sabotage.filter(|sabotage| sabotage.fails == kind.check).map(|sabotage| sabotage.name);
        let few = stand.sabotage.is_some();
        let lies = if few { &kind.lies[..1] } else { kind.lies };
        stand.report.check(kind.check, &agent.kernel_log(), || clients.survive(kind, lies, honest))?;
    }
    let keep = stand.sabotaged("keep-client");
    stand.report.check(UNLOADS, &agent.kernel_log(), || {
        let modules = if keep { &MODULES[..1] } else { MODULES };
        unload_in(agent, modules)?;
        load_in(agent, MODULES)?;
        unload_in(agent, MODULES)?;
        Ok("unloaded with sources held, loaded and unloaded".to_owned())
    })?;
    host_is_well(stand, guest, None)
}

/// The module's clients, and the device.
struct Clients<'a> {
    agent: &'a Agent,
    device: &'a Companion,
    driver: Driver<'a>,
    sources: Vectors<'a>,
    native: Vectors<'a>,
}

impl Clients<'_> {
    /// Each of `lies` is told while everything is tried, and it works when it is not told any more. `sabotage` breaks that.
    fn survive(&self, kind: &Kind, lies: &[&str], sabotage: Option<&str>) -> Verdict {
        let (mut told, mut refused, mut done) = (0, 0, 0);
        for &lie in lies {
            self.tell("none")?;
            self.start_anew()?;
            self.tell(if sabotage == Some("tell-no-lie") { "none" } else { lie })?;
            self.agent.write(TIMEOUT, LYING_MS)?;
            if kind.when_binding && sabotage != Some("bound-before") {
                self.driver.unbind()?;
                answered(self.driver.bind())?;
            }
            for tried in self.try_everything()? {
                *(if tried { &mut done } else { &mut refused }) += 1;
            }
            if sabotage != Some("stay-bound") {
                answered(self.driver.unbind())?;
            }
            let count = match sabotage {
                Some("lie-on" | "stay-silent") => 1,
                _ => self.tell("none")?,
            };
            if count == 0 {
                return Err(Unmet::Seen(format!("{lie}: the device did not come to tell it")));
            }
            told += count;
            self.agent.write(TIMEOUT, TRUTHFUL_MS)?;
            answered(self.driver.bind())?;
            self.works().map_err(|unmet| unmet.during(&format!("after {lie}")))?;
        }
        let tried = done + refused;
        expect(
            tried > 0,
            format!(
                "{} lies, told {told} times; of {tried} operations {refused} failed, and all ended; \
            after each lie {HELD} sources were allocated and fired",
                lies.len()
            ),
        )
    }

    /// The driver bound afresh, and sources allocated.
    fn start_anew(&self) -> Result<()> {
        answered(self.driver.unbind())?;
        answered(self.driver.bind())?;
        answered(self.sources.free(0, usize::from(u16::MAX)))?;
        answered(self.allocate(0)).map(drop)
    }

    fn allocate(&self, first: usize) -> Result<()> {
        self.sources.allocate(&format!("msi contiguous {HELD} {HELD} {first}"))
    }

    /// Everything that the clients can do; what of it was done.
    fn try_everything(&self) -> Result<Vec<bool>> {
        let part = HELD / 2;
        [
            self.sources.mask(1),
            self.sources.held().map(drop),
            self.sources.unmask(1),
            self.native.held().map(drop),
            self.sources.free(part, part),
            self.sources.allocate(&format!("msi any 1 {HELD} {part}")),
            self.allocate(2 * HELD),
            self.sources.mask(2 * HELD),
            self.sources.free(0, usize::from(u16::MAX)),
            self.allocate(0),
        ]
        .into_iter()
        .map(answered)
        .collect()
    }

    /// With the truth, sources are allocated, and each that fires runs its handler and no other.
    fn works(&self) -> Result<(), Unmet> {
        answered(self.sources.free(0, usize::from(u16::MAX)))?;
        self.allocate(0)?;
        raise_each(&self.sources, HELD, |vector| self.command(&format!("happen raise 3 {vector}")).map(drop))
    }

    /// Lets the device tell another lie; how many it told of the last one.
    fn tell(&self, lie: &str) -> Result<u64> {
        let answer = self.command(&format!("lie {lie}"))?;
        let told = answer.strip_prefix("told ").and_then(|count| count.parse().ok());
        told.ok_or_else(|| Error::Unexpected(format!("the device answers {answer:?}")))
    }

    fn command(&self, line: &str) -> Result<String> {
        // The guest's death is that of its QEMU, and then the device would wait for the next.
        self.agent.read("/proc/uptime")?;
        self.device.tell(line)
    }
}

/// Whether it was done; an errno is an answer as well.
fn answered(result: Result<()>) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Error::Operation { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
