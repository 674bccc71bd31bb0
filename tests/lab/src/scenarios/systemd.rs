// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A systemd on an emulated host: the host's tree, writable, in namespaces, with the host's devices.

use crate::container::{booting, entering};
use crate::error::Result;
use crate::host::Host;
use crate::machine::{Guest, Machine};
use crate::package::System;
use std::time::Duration;

/// systemd, its generators and a handful of services, on an emulated processor.
const START: Duration = Duration::from_secs(240);

/// Names of the control group, the socket for notifications and the directory to mount at.
const GROUP: &str = "/sys/fs/cgroup/lab";
const NOTIFY: &str = "lab-systemd";
const PLACE: &str = "/run/lab";

/// Prints each notification (sd_notify(3)) that comes, from the first word on that says it listens.
const LISTENER: &str = r#"$| = 1; socket(S, AF_UNIX, SOCK_DGRAM, 0) or die $!; bind(S, pack_sockaddr_un("\0$ARGV[0]")) or die $!;
    print "listening\n"; while (defined recv(S, $m, 4096, 0)) { print "$m\n" }"#;

/// It runs. It ends with the host.
pub(super) struct Systemd<'a> {
    host: &'a Host,
    /// The number of its process 1 among the host's.
    init: String,
}

impl<'a> Systemd<'a> {
    /// What a machine needs for it.
    pub(super) fn machine(machine: Machine) -> Machine {
        machine.module("overlay")
    }

    /// Boots it.
    pub(super) fn boot(host: &'a Host) -> Result<Self> {
        let agent = host.agent();
        let prepare = format!("mount -t cgroup2 cgroup2 /sys/fs/cgroup && mkdir {GROUP} {PLACE}");
        agent.run(&["sh", "-c", &prepare])?;
        let listener = ["perl", "-MSocket", "-e", LISTENER, NOTIFY].map(str::to_owned);
        host.spawn("systemd-notifications", &listener)?;
        agent.output_line("systemd-notifications", "listening", START)?;
        let mut argv = vec!["unshare".to_owned()];
        argv.extend(booting(GROUP, "/", PLACE, NOTIFY, "/dev"));
        let unshare = host.spawn("systemd", &argv)?.id();
        agent.output_line("systemd-notifications", "READY=1", START)?;
        let init = agent.read(&format!("/proc/{unshare}/task/{unshare}/children"))?.trim().to_owned();
        Ok(Self { host, init })
    }

    /// The guest, with its QEMU among systemd's processes.
    pub(super) fn guest(&self, guest: Guest) -> Guest {
        guest.launched_by(entering(&self.init))
    }
}

impl System for &Systemd<'_> {
    fn run(&self, argv: &[&str]) -> Result<String> {
        let enter = entering(&self.init);
        let argv: Vec<_> = enter.iter().map(String::as_str).chain(argv.iter().copied()).collect();
        Ok(self.host.agent().run(&argv)?.trim_end().to_owned())
    }
}
