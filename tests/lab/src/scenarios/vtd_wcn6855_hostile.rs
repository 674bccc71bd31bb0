// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The patched ath11k where everything around it fails: a host that does not answer, an operator who takes the card away, a VMM
//! that takes its interrupts back, a virtio-irq device that leaves, a card that answers nonsense. It says so and can be let go of,
//! and works again with the next try.

use super::daemon::Daemon;
use super::functions::WCN6855;
use super::kernels::{Driver, guest_is_well, host_is_well};
use super::vectors::becoming;
use super::wcn6855::{self as card, ATH11K, VECTORS, held_by_host};
use super::{Common, SOON, Sabotage, Scenario, Stand, text_of};
use crate::agent::Agent;
use crate::checks::{Unmet, Verdict, expect};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::iommu::Iommu;
use nix::libc::{ENXIO, EOPNOTSUPP, ETIMEDOUT, SIGCONT, SIGSTOP};
use std::time::Duration;

/// What the patched ath11k logs when its vectors end.
const TAKEN_BACK: &str = "host took the interrupts back, bind the driver again to get others";

/// How long the guest's module waits for a host that does not answer, and for others.
const SHORT_MS: &str = "500";
const LONG_MS: &str = "30000";

/// The guest's own MSI capability, and its enable bit.
const MSI_CONTROL: usize = 0x52;
const MSI_ENABLE: u16 = 1;

/// Longer than the driver takes to give a card up: each step of MHI waits some seconds for it.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Kinds of nonsense of the card's model, what it says of each, and what the driver then logs.
const NONSENSE: &[(u32, &str, &str)] = &[
    (1, "all ones", "Unsupported WCN6855 SOC hardware version"),
    (2, "never ready", "failed to power up mhi"),
    (3, "unknown environment", "failed to power up mhi"),
    (4, "BHI elsewhere", "failed to prepare mhi"),
    (5, "system error", "failed to power up mhi"),
    (6, "image refused", "failed to power up mhi"),
];

pub(super) const SCENARIO: Scenario = Scenario {
    name: "vtd-wcn6855-hostile",
    iommu: &Iommu::VTD,
    summary: "the patched ath11k where host, operator, VMM and card fail it: messages, no hang, nothing left behind",
    checks: &[
        "unbound-before-its-firmware-is-ready",
        "silent-host-fails-the-probe",
        "wrong-function-fails-the-probe",
        "function-that-goes-is-told",
        "revoked-vectors-are-told",
        "device-that-leaves-is-told",
        "silent-host-does-not-hold-removal-up",
        "suspend-is-refused",
        "nonsense-of-the-card-fails-the-probe",
        "no-interrupt-is-left",
    ],
    sabotages: &[
        Sabotage {
            name: "unpatched-driver",
            what: "the guest has Debian's ath11k",
            fails: "unbound-before-its-firmware-is-ready",
        },
        Sabotage {
            name: "talkative-host",
            what: "the daemon is not stopped",
            fails: "silent-host-fails-the-probe",
        },
        Sabotage {
            name: "right-function",
            what: "the card is attached as what it is",
            fails: "wrong-function-fails-the-probe",
        },
        Sabotage {
            name: "keep-attached",
            what: "the card is not detached",
            fails: "function-that-goes-is-told",
        },
        Sabotage {
            name: "keep-disabled",
            what: "the guest's own MSI stays off",
            fails: "revoked-vectors-are-told",
        },
        Sabotage { name: "device-stays", what: "the device stays", fails: "device-that-leaves-is-told" },
        Sabotage {
            name: "stays-silent",
            what: "the daemon does not go on",
            fails: "silent-host-does-not-hold-removal-up",
        },
        Sabotage {
            name: "suspend-nothing",
            what: "the driver is unbound before",
            fails: "suspend-is-refused",
        },
        Sabotage {
            name: "sensible-card",
            what: "the card tells the truth",
            fails: "nonsense-of-the-card-fails-the-probe",
        },
        Sabotage { name: "stay-bound", what: "the driver stays bound", fails: "no-interrupt-is-left" },
    ],
    common: &[Common::KERNELS, Common::DAEMON],
    unsettled: None,
    limit: Duration::from_secs(600),
    run,
};

fn run(stand: &mut Stand<'_>) -> Result<()> {
    let drivers = crate::wifi::drivers(stand.layout, None)?;
    card::on_host(stand, SCENARIO.name, Some(&drivers), play)
}

fn play(stand: &mut Stand<'_>, host: &Host) -> Result<()> {
    let (daemon, guest) = card::served_guest(host, WCN6855.spec_with_vfio(), &[])?;
    let agent = guest.agent();
    card::unbind(agent)?;
    let before = Interrupts::of(agent)?;
    card::load_ath11k(stand, &guest, !stand.sabotaged("unpatched-driver"))?;
    let scene = Scene { host, daemon: &daemon, guest: agent, log: agent.kernel_log() };
    scene.unbound_early(stand)?;
    scene.host_is_silent(stand)?;
    scene.operator_errs(stand)?;
    scene.vectors_end(stand)?;
    scene.host_is_silent_at_the_end(stand)?;
    scene.suspended(stand)?;
    scene.card_talks_nonsense(stand)?;
    scene.nothing_is_left(stand, &before)?;
    guest_is_well(stand, &guest, 1)?;
    daemon.outlasts(stand, host, guest, 1)?;
    host_is_well(stand, host, None)
}

/// Who is there.
struct Scene<'a> {
    host: &'a Host,
    daemon: &'a Daemon,
    guest: &'a Agent,
    log: std::path::PathBuf,
}

impl Scene<'_> {
    /// Stops the daemon, or lets it go on. The guest does not wait long for one that is stopped.
    fn stop_daemon(&self, stop: bool) -> Result<()> {
        let (signal, timeout) = if stop { (SIGSTOP, SHORT_MS) } else { (SIGCONT, LONG_MS) };
        self.daemon.process().signal(signal)?;
        self.guest.write("/sys/module/virtio_irq/parameters/timeout_ms", timeout)
    }

    /// Gives the card to ath11k, which has to take it: with all vectors, and with the message that the host has.
    fn bind(&self) -> Result<String, Unmet> {
        let mark = self.guest.kernel_mark();
        card::bind(self.guest, ATH11K)?;
        let line = self.said(mark, card::TOLD)?;
        let (there, held) = (self.host.msi(WCN6855.host)?.pair, held_by_host(self.host)?);
        let seen = format!("{line}; {held} vectors on the host");
        if card::told(&line) == Some(there) && held == VECTORS { Ok(seen) } else { Err(Unmet::Seen(seen)) }
    }

    /// Takes the card from ath11k, which has to leave no vector on the host.
    fn unbind(&self) -> Result<(), Unmet> {
        card::unbind(self.guest)?;
        match becoming(0, || held_by_host(self.host))? {
            0 => Ok(()),
            held => Err(Unmet::Seen(format!("unbound, and the host has {held} vectors"))),
        }
    }

    /// ath11k has to refuse the card, with a line that contains `text`, and with `errno` if there is one to expect.
    fn refuses(&self, errno: Option<i32>, text: &str) -> Verdict {
        let mark = self.guest.kernel_mark();
        let bound = self.guest.write_within(&card::driver("bind", ATH11K), WCN6855.guest, GIVE_UP);
        let error = match bound {
            Ok(()) => return Err(Unmet::Seen("bound all the same".to_owned())),
            Err(error @ Error::Operation { .. }) => error,
            Err(error) => return Err(error.into()),
        };
        let line = self.said(mark, text)?;
        expect(errno.is_none() || errno == error.errno(), format!("{line}: {error}"))
    }

    /// A line of the guest's kernel after `mark`, without which a check fails.
    fn said(&self, mark: usize, text: &str) -> Verdict {
        match self.guest.kernel_line(mark, text, SOON) {
            Ok(line) => Ok(text_of(&line).to_owned()),
            Err(Error::Late { .. }) => Err(Unmet::Seen(format!("ath11k does not say {text:?}"))),
            Err(error) => Err(error.into()),
        }
    }

    /// ath11k has to say that its vectors ended, after `mark`.
    fn is_told(&self, mark: usize) -> Verdict {
        self.said(mark, TAKEN_BACK)
    }

    /// The card's firmware runs, but nothing of it has answered yet: what the driver takes down is not all there.
    fn unbound_early(&self, stand: &mut Stand<'_>) -> Result<()> {
        stand.report.check("unbound-before-its-firmware-is-ready", &self.log, || {
            self.unbind()?;
            let seen = self.bind()?;
            self.unbind()?;
            Ok(format!("unbound; bound again: {seen}; unbound again"))
        })
    }

    fn host_is_silent(&self, stand: &mut Stand<'_>) -> Result<()> {
        let talks = stand.sabotaged("talkative-host");
        stand.report.check("silent-host-fails-the-probe", &self.log, || {
            if !talks {
                self.stop_daemon(true)?;
            }
            let refused = self.refuses(Some(ETIMEDOUT), "failed to look for a virtio-irq device: -110");
            self.stop_daemon(false)?;
            let refused = refused?;
            let again = self.bind()?;
            self.unbind()?;
            Ok(format!("{refused}; the host answers again: {again}"))
        })
    }

    /// The operator gives the guest another card at the address of this one.
    fn operator_errs(&self, stand: &mut Stand<'_>) -> Result<()> {
        let right = stand.sabotaged("right-function");
        let (name, attached) = match right {
            true => (WCN6855.host, WCN6855.spec_with_vfio()),
            false => ("sim:igb", "sim:igb,guest=00:06.0".to_owned()),
        };
        stand.report.check("wrong-function-fails-the-probe", &self.log, || {
            self.daemon.ctl(self.host, &["detach", WCN6855.host])?;
            self.daemon.ctl(self.host, &["attach", &attached])?;
            let refused = self.refuses(Some(ENXIO), "failed to look for a virtio-irq device: -6")?;
            self.daemon.ctl(self.host, &["detach", name])?;
            self.attach()?;
            let again = self.bind()?;
            Ok(format!("{refused}; attached as what it is: {again}"))
        })
    }

    fn attach(&self) -> Result<()> {
        self.daemon.ctl(self.host, &["attach", &WCN6855.spec_with_vfio()]).map(drop)
    }

    /// The vectors of a driver that is bound end, for three reasons. It is told, can be unbound, and gets others.
    fn vectors_end(&self, stand: &mut Stand<'_>) -> Result<()> {
        let keep = stand.sabotaged("keep-attached");
        stand.report.check("function-that-goes-is-told", &self.log, || {
            let mark = self.guest.kernel_mark();
            if !keep {
                self.daemon.ctl(self.host, &["detach", WCN6855.host])?;
            }
            let told = self.is_told(mark)?;
            self.unbind()?;
            self.attach()?;
            Ok(format!("detached: {told}; attached again: {}", self.bind()?))
        })?;
        let keep = stand.sabotaged("keep-disabled");
        stand.report.check("revoked-vectors-are-told", &self.log, || {
            let mark = self.guest.kernel_mark();
            if !keep {
                // QEMU takes it for the guest's wish to have its own vector.
                self.enable_msi(true)?;
            }
            let told = self.is_told(mark)?;
            self.enable_msi(false)?;
            self.unbind()?;
            Ok(format!("revoked: {told}; bound again: {}", self.bind()?))
        })?;
        let keep = stand.sabotaged("device-stays");
        stand.report.check("device-that-leaves-is-told", &self.log, || {
            let device = Driver::find(self.guest)?;
            let mark = self.guest.kernel_mark();
            if !keep {
                device.unbind()?;
            }
            let told = self.is_told(mark)?;
            self.unbind()?;
            device.bind()?;
            Ok(format!("{} left: {told}; it is back: {}", device.device, self.bind()?))
        })
    }

    fn enable_msi(&self, enable: bool) -> Result<()> {
        let (set, clear) = if enable { (MSI_ENABLE, 0) } else { (0, MSI_ENABLE) };
        WCN6855.change_config(self.guest, MSI_CONTROL, set, clear)
    }

    fn host_is_silent_at_the_end(&self, stand: &mut Stand<'_>) -> Result<()> {
        let stays = stand.sabotaged("stays-silent");
        stand.report.check("silent-host-does-not-hold-removal-up", &self.log, || {
            self.stop_daemon(true)?;
            self.guest.write_within(&card::driver("unbind", ATH11K), WCN6855.guest, GIVE_UP)?;
            if !stays {
                self.stop_daemon(false)?;
            }
            let held = becoming(0, || held_by_host(self.host))?;
            self.stop_daemon(false)?;
            let seen = format!("unbound from a host that is stopped; it goes on, and has {held} vectors");
            if held != 0 {
                return Err(Unmet::Seen(seen));
            }
            Ok(format!("{seen}; bound again: {}", self.bind()?))
        })
    }

    /// The driver cannot keep vectors that end when the virtio-irq device is suspended, so it does not let the guest sleep.
    fn suspended(&self, stand: &mut Stand<'_>) -> Result<()> {
        let unbound = stand.sabotaged("suspend-nothing");
        stand.report.check("suspend-is-refused", &self.log, || {
            if unbound {
                self.unbind()?;
            }
            let mark = self.guest.kernel_mark();
            match card::suspend(self.guest) {
                Ok(()) => return Err(Unmet::Seen("the guest slept".to_owned())),
                Err(error) if error.errno() == Some(EOPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
            let line = self.said(mark, "cannot suspend with interrupts from virtio-irq")?;
            let (there, held) = (self.host.msi(WCN6855.host)?.pair, held_by_host(self.host)?);
            self.unbind()?;
            expect(held == VECTORS, format!("{line}; it keeps {held} vectors from {there} on"))
        })
    }

    fn card_talks_nonsense(&self, stand: &mut Stand<'_>) -> Result<()> {
        let sensible = stand.sabotaged("sensible-card");
        stand.report.check("nonsense-of-the-card-fails-the-probe", &self.log, || {
            let mut all = Vec::new();
            for &(kind, what, text) in NONSENSE {
                card::talk_nonsense(self.guest, if sensible { 0 } else { kind })?;
                let refused = self.refuses(None, text).map_err(|unmet| unmet.during(what))?;
                all.push(format!("{what}: {refused}"));
            }
            card::talk_nonsense(self.guest, 0)?;
            let again = self.bind()?;
            Ok(format!("{}; a card that is right: {again}", all.join("; ")))
        })
    }

    fn nothing_is_left(&self, stand: &mut Stand<'_>, before: &Interrupts) -> Result<()> {
        let stays = stand.sabotaged("stay-bound");
        stand.report.check("no-interrupt-is-left", &self.log, || {
            if !stays {
                self.unbind()?;
            }
            let after = becoming(before.clone(), || Interrupts::of(self.guest))?;
            let held = held_by_host(self.host)?;
            let seen = format!("in the guest {after}, {before} before ath11k; {held} vectors on the host");
            expect(after == *before && held == 0, seen)
        })
    }
}

/// The interrupts that Linux knows, and those of them that somebody requested.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Interrupts {
    known: Vec<String>,
    requested: Vec<String>,
}

impl Interrupts {
    fn of(guest: &Agent) -> Result<Self> {
        let table = guest.read("/proc/interrupts")?;
        let number = |line: &str| line.split_once(':').map(|(number, _)| number.trim().to_owned());
        Ok(Self {
            known: guest.list("/sys/kernel/irq")?,
            requested: table.lines().filter_map(number).collect(),
        })
    }
}

impl std::fmt::Display for Interrupts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} interrupts, {} lines of /proc/interrupts", self.known.len(), self.requested.len())
    }
}
