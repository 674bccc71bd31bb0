// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon on a host.

use super::kernels::power_off;
use super::{SOON, Stand};
use crate::checks::{Unmet, expect};
use crate::error::{Error, Result};
use crate::host::{Host, RunningGuest, payload};
use crate::machine::Guest;
use crate::process::{Holdings, Process};
use nix::libc::{SIGKILL, SIGTERM};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use virtio_irq_lab_agent::{End, Operation};

const SOCKET: &str = "/run/virtio-irq.sock";

const CONTROL_SOCKET: &str = "/run/virtio-irq.ctl";

/// The check that it is confined, by all that it can be confined with.
pub(super) const CONFINED: &str = "daemon-is-confined";

/// The daemon is to leave at once.
const LEAVE: Duration = Duration::from_secs(20);

/// A running daemon, and what it held before its first frontend.
pub(super) struct Daemon {
    name: String,
    process: Process,
    before: Holdings,
}

/// What a daemon says of its confinement.
pub(super) struct Confinement {
    pub(super) is_whole: bool,
    pub(super) seen: String,
}

/// How many processes of daemons there are on the host, those that open devices for others among them.
pub(super) fn running(host: &Host) -> Result<usize> {
    // The kernel keeps the first 15 characters of a name.
    let names = host.agent().run(&["/bin/sh", "-c", "cat /proc/[0-9]*/comm 2>/dev/null || :"])?;
    Ok(names.lines().filter(|name| *name == "vhost-device-ir").count())
}

/// Reads it out of the daemon's status.
pub(super) fn confinement(status: &Value) -> Confinement {
    let own = &status["daemon"]["sandbox"];
    let parts = ["no_new_privileges", "landlock", "seccomp"];
    Confinement {
        is_whole: parts.iter().all(|part| own[part] == true),
        seen: format!("the daemon itself: {own}"),
    }
}

impl Daemon {
    /// Starts it with these values of `--device`, and waits until it takes frontends. Its log is called `name`.
    pub(super) fn start(host: &Host, name: &str, devices: &[String]) -> Result<Self> {
        let devices = devices.iter().flat_map(|device| ["--device".to_owned(), device.clone()]);
        Self::start_with(host, name, &devices.collect::<Vec<_>>())
    }

    /// The same, but what it is to serve it asks QEMU at this socket.
    pub(super) fn start_by_qmp(host: &Host, name: &str, qmp: &str) -> Result<Self> {
        Self::start_with(host, name, &["--qmp".to_owned(), qmp.to_owned()])
    }

    fn start_with(host: &Host, name: &str, arguments: &[String]) -> Result<Self> {
        let mut argv = vec![payload("vhost-device-irq"), "--socket-path".into(), SOCKET.into()];
        argv.extend(["--control-socket".into(), CONTROL_SOCKET.into()]);
        argv.extend_from_slice(arguments);
        let process = host.spawn(name, &argv)?;
        host.agent().output_line(name, "waiting for a frontend", SOON)?;
        let before = process.holdings()?;
        Ok(Self { name: name.to_owned(), process, before })
    }

    pub(super) fn process(&self) -> &Process {
        &self.process
    }

    pub(super) fn log(&self) -> PathBuf {
        self.process.log()
    }

    /// Waits until it has written a line that contains `text`; nothing if it does not.
    pub(super) fn says(&self, host: &Host, text: &str) -> Result<Option<String>> {
        match host.agent().output_line(&self.name, text, SOON) {
            Ok(line) => Ok(Some(line.trim().to_owned())),
            // That it does not come is a finding; the host is well.
            Err(Error::Late { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What its control socket answers to this command of `ctl`.
    pub(super) fn ctl(&self, host: &Host, command: &[&str]) -> Result<Value> {
        let daemon = payload("vhost-device-irq");
        let argv = [&[&*daemon, "ctl", "--json", "--socket", CONTROL_SOCKET], command].concat();
        let answer = host.agent().run(&argv)?;
        serde_json::from_str(&answer)
            .map_err(|why| Error::Unexpected(format!("{}: {why}: {answer}", self.name)))
    }

    /// The guest with the virtio-irq device added, in the words of the daemon.
    pub(super) fn serve(host: &Host, guest: Guest) -> Result<Guest> {
        Self::serve_at(host, SOCKET, guest)
    }

    /// The same for a daemon that listens at `socket`.
    pub(super) fn serve_at(host: &Host, socket: &str, guest: Guest) -> Result<Guest> {
        let memory = format!("{}M", guest.memory);
        let daemon = payload("vhost-device-irq");
        let argv = [&daemon, "qemu-args", "--socket-path", socket, "--memory", &memory, "--format", "lines"];
        let lines = host.agent().run(&argv)?;
        Ok(guest.with(lines.lines().map(str::to_owned)))
    }

    /// Ends it where nothing about its end is checked.
    pub(super) fn stop(&self) -> Result<()> {
        self.process.signal(SIGTERM)?;
        self.process.wait(LEAVE).map(drop)
    }

    /// Kills it, without a word to anybody, and waits for its end.
    pub(super) fn kill(&self) -> Result<()> {
        self.process.signal(SIGKILL)?;
        self.process.wait(LEAVE).map(drop)
    }

    /// Waits until it has put the things of `frontends` frontends away.
    pub(super) fn has_seen_off(&self, host: &Host, frontends: usize) -> Result<()> {
        // It says so when it is done with one.
        match frontends.checked_sub(1) {
            Some(last) => {
                host.agent().output_line_after(&self.name, last, "the frontend left", SOON).map(drop)
            }
            None => Ok(()),
        }
    }

    /// The check [`CONFINED`], of a daemon that has done all that it does.
    fn is_confined(&self, stand: &mut Stand<'_>, host: &Host) -> Result<()> {
        stand.report.check(CONFINED, &self.log(), || {
            let own = confinement(&self.ctl(host, &["status"])?["status"]);
            expect(own.is_whole, own.seen)
        })
    }

    /// The checks [`CONFINED`] and `daemon-leaks-nothing`, whose sabotage is `lingering-frontend`.
    pub(super) fn leaks_nothing(&self, stand: &mut Stand<'_>, host: &Host, frontends: usize) -> Result<()> {
        self.is_confined(stand, host)?;
        if stand.sabotaged("lingering-frontend") {
            host.agent().perform(Operation::Connect { path: SOCKET.into() })?;
            host.agent().output_line_after(&self.name, frontends, "a frontend connected", SOON)?;
        }
        stand.report.check("daemon-leaks-nothing", &self.log(), || {
            self.has_seen_off(host, frontends)?;
            let before = self.before;
            // What was asked at its control socket may be closing still, of which nobody hears. What leaks stays.
            let start = Instant::now();
            let after = loop {
                let after = self.process.holdings()?;
                if after == before || start.elapsed() > SOON {
                    break after;
                }
            };
            let seen = format!("before the first frontend {before}, after {frontends} of them {after}");
            expect(after == before, seen)
        })
    }

    /// Switches the last guest off and ends, with the checks for both. It was the daemon's `frontends`th frontend.
    pub(super) fn outlasts(
        &self,
        stand: &mut Stand<'_>,
        host: &Host,
        guest: RunningGuest,
        frontends: usize,
    ) -> Result<()> {
        power_off(guest)?;
        self.leaks_nothing(stand, host, frontends)?;
        self.leaves(stand)
    }

    /// The check `daemon-leaves-cleanly`, and its sabotage `killed-daemon`.
    pub(super) fn leaves(&self, stand: &mut Stand<'_>) -> Result<()> {
        let signal = if stand.sabotaged("killed-daemon") { SIGKILL } else { SIGTERM };
        stand.report.check("daemon-leaves-cleanly", &self.log(), || {
            let start = Instant::now();
            self.process.signal(signal)?;
            let end = self.process.wait(LEAVE)?;
            let milliseconds = start.elapsed().as_millis();
            match end {
                Some(end) => expect(end == End::Code(0), format!("{end} after {milliseconds} ms")),
                None => Err(Unmet::Seen(format!("still there {milliseconds} ms after SIGTERM"))),
            }
        })
    }
}
