// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Debian tree under a systemd of its own, in namespaces of this machine: for what is installed and started, and does not
//! need the hardware of an emulated one.

use crate::error::{At, Error, Result};
use crate::layout::Layout;
use crate::package::System;
use crate::program::{self, bound};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

/// systemd and the few services of a bare machine.
const START: Duration = Duration::from_secs(120);

/// Joins the control group of the container, which its control group namespace then begins at.
const JOIN: &str = "echo 0 > \"$1/cgroup.procs\"; shift; exec unshare --cgroup sh -c \"$@\"";

const SETUP: &str = include_str!("container.sh");

/// The arguments of unshare(1) with which the tree boots systemd in namespaces. `group` is a control group of its own, `place` a
/// directory to mount at, `notify` the name of an abstract socket for systemd's notifications, and `devices` what is to be its /dev
/// where that is to have more than any container's.
pub(crate) fn booting(group: &str, tree: &str, place: &str, notify: &str, devices: &str) -> Vec<String> {
    let namespaces =
        ["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL", "sh", "-c", JOIN, "sh"];
    let own = [group, SETUP, "sh", tree, place, notify, devices];
    namespaces.iter().chain(&own).map(|&argument| argument.to_owned()).collect()
}

/// The command that runs another one in the namespaces of that system, whose process 1 has the number `init` here.
pub(crate) fn entering(init: &str) -> Vec<String> {
    let enter =
        ["nsenter", "--target", init, "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root", "--wd"];
    let clean = [
        "env",
        "-i",
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL=C.UTF-8",
        "DEBIAN_FRONTEND=noninteractive",
    ];
    enter.iter().chain(&clean).map(|&argument| argument.to_owned()).collect()
}

/// A running container. Dropped, it is gone with all that runs in it, and what was written in it is lost.
#[derive(Debug)]
pub struct Container {
    unshare: Child,
    /// Its process 1, once it is up.
    init: Option<Pid>,
    group: PathBuf,
    log: PathBuf,
}

impl Container {
    /// Boots systemd in the tree. Its log is `systemd.log` among the logs of `name`.
    ///
    /// # Errors
    ///
    /// If this machine has no control groups of version 2, or systemd does not come up.
    pub fn boot(layout: &Layout, name: &str) -> Result<Self> {
        let logs = layout.logs(name);
        fs::create_dir_all(&logs).at(&logs)?;
        let log = logs.join("systemd.log");
        let output = File::create(&log).at(&log)?;
        let place = layout.lab().join("container");
        fs::create_dir_all(&place).at(&place)?;
        let own = format!("virtio-irq-lab-{}", std::process::id());
        let group = groups()?.join(&own);
        fs::create_dir_all(&group).at(&group)?;
        let ready = SocketAddr::from_abstract_name(&own)
            .and_then(|address| UnixDatagram::bind_addr(&address))
            .and_then(|socket| socket.set_read_timeout(Some(START)).map(|()| socket));
        let ready = ready.at("socket of systemd's notifications")?;

        let mut command = bound("unshare");
        let [directory, tree, place] =
            [&group, &layout.tree(), &place].map(|path| path.display().to_string());
        command
            .args(booting(&directory, &tree, &place, &own, ""))
            .stdout(output.try_clone().at(&log)?)
            .stderr(output);
        let unshare = command.spawn().at("setpriv")?;
        let mut container = Self { unshare, init: None, group, log };
        container.wait(&ready)?;
        let children = format!("/proc/{0}/task/{0}/children", container.unshare.id());
        let init = fs::read_to_string(&children).at(&children)?;
        let number: i32 =
            init.trim().parse().map_err(|_| Error::Unexpected(format!("{children}: {init:?}")))?;
        container.init = Some(Pid::from_raw(number));
        Ok(container)
    }

    /// Where a file of its is found from outside.
    #[must_use]
    pub fn outside(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.number()))
    }

    /// The log of its systemd, and of programs that failed.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The number of its process 1; none is 0, whose directory nobody has.
    fn number(&self) -> i32 {
        self.init.map_or(0, Pid::as_raw)
    }

    /// Until systemd has said that it is up (sd_notify(3), as a container's payload does).
    fn wait(&mut self, ready: &UnixDatagram) -> Result<()> {
        let mut message = [0; 4096];
        loop {
            let late = |_| Error::Late {
                machine: "container".into(),
                what: "systemd's start".into(),
                seconds: START.as_secs(),
                log: self.log.clone(),
            };
            let length = ready.recv(&mut message).map_err(late)?;
            let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
            if text.lines().any(|line| line == "READY=1") {
                return Ok(());
            }
        }
    }
}

impl System for &Container {
    fn run(&self, argv: &[&str]) -> Result<String> {
        let enter = entering(&self.number().to_string());
        let (program, arguments) =
            enter.split_first().ok_or_else(|| Error::Unexpected("no nsenter".into()))?;
        let mut command = bound(program);
        command.args(arguments).args(argv);
        let output = program::output(&argv.join(" "), &mut command, &self.log)?;
        Ok(String::from_utf8_lossy(&output).trim_end().to_owned())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The end of its process 1 is the end of all, and unshare waits for that. Each may have ended by itself.
        let _ended = match self.init {
            Some(init) => kill(init, Signal::SIGKILL).map_err(std::io::Error::from),
            None => self.unshare.kill(),
        };
        let _: std::io::Result<std::process::ExitStatus> = self.unshare.wait();
        remove_groups(&self.group);
    }
}

/// Where this machine has its control groups.
fn groups() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").at("/proc/self/mounts")?;
    let found = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let directory = words.next()?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(directory))
    });
    found.ok_or_else(|| Error::Missing {
        missing: "this machine has no control groups of version 2, which systemd needs".into(),
        remedy: "mount -t cgroup2 cgroup2 /sys/fs/cgroup".into(),
    })
}

/// From the leaves on; a group whose last process is not quite gone stays behind, empty.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _: std::io::Result<()> = fs::remove_dir(group);
}
