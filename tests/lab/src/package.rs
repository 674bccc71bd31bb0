// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Debian package on a system with systemd: installed, its units started and stopped, removed.

use crate::checks::{Unmet, Verdict, expect};
use crate::error::{At, Error, Result};
use crate::layout::Layout;
use std::fs;
use std::path::{Path, PathBuf};

/// A system with systemd.
pub trait System {
    /// Runs a program in it to its end and returns its output.
    ///
    /// # Errors
    ///
    /// If it fails, or cannot be run.
    fn run(&self, argv: &[&str]) -> Result<String>;
}

/// The package, on a system.
#[derive(Debug, Clone, Copy)]
pub struct Package<S>(pub S);

/// The service of a virtual machine that is called `lab`.
pub const SERVICE: &str = "vhost-device-irq@lab.service";

/// The socket unit that starts it.
pub const SOCKET_UNIT: &str = "vhost-device-irq@lab.socket";

/// Where the VMM connects.
pub const SOCKET: &str = "/run/vhost-device-irq/lab.sock";

const SETTINGS: &str = "/etc/vhost-device-irq/lab.conf";

/// Where the package is in the tree.
const INSIDE: &str = "/build/vhost-device-irq.deb";

/// CAP_SYS_ADMIN, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, as /proc/PID/status has them.
const CAPABILITIES: u64 = 1 << 21 | 1 << 19 | 1 << 2;

/// The package, if it was built.
#[must_use]
pub fn built(layout: &Layout) -> Option<PathBuf> {
    let entries = fs::read_dir(layout.dist()).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut packages = entries.filter(|path| path.extension().is_some_and(|extension| extension == "deb"));
    packages.next()
}

/// Puts the package into the tree, and returns where it is there.
///
/// # Errors
///
/// There is none.
pub fn bring(layout: &Layout) -> Result<&'static str> {
    let package = built(layout).ok_or_else(|| Error::Missing {
        missing: format!("there is no Debian package in {}", layout.dist().display()),
        remedy: "cargo xtask dist".into(),
    })?;
    let to = layout.outside(Path::new(INSIDE));
    fs::copy(&package, &to).at(&package)?;
    Ok(INSIDE)
}

impl<S: System> Package<S> {
    /// Installs the package that is at `path`.
    ///
    /// # Errors
    ///
    /// dpkg does not have it as installed after that.
    pub fn install(&self, path: &str) -> Verdict {
        self.0.run(&["dpkg", "--install", path])?;
        let status =
            ["dpkg-query", "--show", "--showformat=${Package} ${Version}: ${Status}", "vhost-device-irq"];
        let seen = self.0.run(&status)?;
        expect(seen.ends_with(": install ok installed"), seen)
    }

    /// Writes the settings of the service, `arguments` of the daemon's command line, and starts the socket.
    ///
    /// # Errors
    ///
    /// systemd does not take that.
    pub fn listen(&self, arguments: &str) -> Result<()> {
        let write = "mkdir -p \"${1%/*}\" && printf 'DEVICES=\"%s\"\\n' \"$2\" > \"$1\"";
        self.0.run(&["sh", "-c", write, "sh", SETTINGS, arguments])?;
        self.0.run(&["systemctl", "daemon-reload"])?;
        self.0.run(&["systemctl", "start", SOCKET_UNIT]).map(drop)
    }

    /// What systemd says of a unit, such as `active`.
    ///
    /// # Errors
    ///
    /// It says nothing.
    pub fn state(&self, unit: &str) -> Result<String> {
        // `systemctl is-active` fails for all but one answer.
        self.property("ActiveState", unit)
    }

    /// The service's process.
    ///
    /// # Errors
    ///
    /// systemd does not say.
    pub fn process(&self) -> Result<String> {
        self.property("MainPID", SERVICE)
    }

    fn property(&self, name: &str, unit: &str) -> Result<String> {
        self.0.run(&["systemctl", "show", &format!("--property={name}"), "--value", unit])
    }

    /// What the kernel has made of the unit's settings.
    ///
    /// # Errors
    ///
    /// The daemon may have more than it needs.
    pub fn confinement(&self) -> Verdict {
        let status = self.0.run(&["cat", &format!("/proc/{}/status", self.process()?)])?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim).unwrap_or_default()
        };
        let capabilities = u64::from_str_radix(field("CapBnd"), 16).unwrap_or(u64::MAX);
        let held = capabilities == CAPABILITIES && field("NoNewPrivs") == "1" && field("Seccomp") == "2";
        let seen =
            ["CapBnd", "NoNewPrivs", "Seccomp"].map(|name| format!("{name} {}", field(name))).join(", ");
        expect(held, seen)
    }

    /// Stops socket and service, which have to leave nothing behind.
    ///
    /// # Errors
    ///
    /// They leave something, or systemd is not satisfied with their end.
    pub fn stop(&self) -> Verdict {
        self.0.run(&["systemctl", "stop", SOCKET_UNIT, SERVICE])?;
        let show = ["systemctl", "show", "--property=Result,ExecMainStatus,ActiveState", SERVICE];
        let end = self.0.run(&show)?;
        let left = self.is_there(SOCKET)?;
        let clean = ["Result=success", "ExecMainStatus=0", "ActiveState=inactive"];
        let seen = format!(
            "{}; the socket is {}",
            end.replace('\n', ", "),
            if left { "still there" } else { "gone" }
        );
        expect(!left && clean.iter().all(|line| end.lines().any(|it| it == *line)), seen)
    }

    /// Removes the package.
    ///
    /// # Errors
    ///
    /// The daemon is still there.
    pub fn purge(&self) -> Verdict {
        self.0.run(&["dpkg", "--purge", "vhost-device-irq"])?;
        self.is_gone()
    }

    /// Whether the daemon's program is gone.
    ///
    /// # Errors
    ///
    /// It is there.
    pub fn is_gone(&self) -> Verdict {
        let left = self.is_there("/usr/bin/vhost-device-irq")?;
        expect(!left, if left { "the daemon is still there" } else { "the daemon is gone" })
    }

    fn is_there(&self, path: &str) -> Result<bool, Unmet> {
        Ok(self.0.run(&["sh", "-c", "test ! -e \"$1\" || echo there", "sh", path])? == "there")
    }
}
