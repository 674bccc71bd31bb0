// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A real QEMU that owns functions, without a guest: what a guest would do to their configuration space comes over its
//! test protocol.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use virtio_irq_proto::PciAddress;

pub(crate) struct Qemu {
    child: Child,
    guest: BufReader<UnixStream>,
    monitor: BufReader<UnixStream>,
    directory: PathBuf,
}

impl Qemu {
    /// QEMU with these functions in the slots 6, 7 and so on. It has realized them when this returns.
    pub(crate) fn start(name: &str, functions: &[PciAddress]) -> Self {
        let device =
            |(slot, function)| ["-device".to_owned(), format!("vfio-pci,host={function},addr={slot:02x}.0")];
        let devices: Vec<_> = (6..).zip(functions).flat_map(device).collect();
        Self::start_by(Command::new("timeout"), name, &devices)
    }

    /// QEMU with the function in slot 6 that a daemon lends at `socket`.
    pub(crate) fn borrow(name: &str, mut program: Command, socket: &Path) -> Self {
        program
            .arg("exec")
            .arg("--vfio")
            .arg(format!("{},addr=06.0", socket.display()))
            .args(["--", "timeout"]);
        Self::start_by(program, name, &[])
    }

    /// QEMU by a `timeout` that still lacks its arguments.
    fn start_by(mut command: Command, name: &str, devices: &[String]) -> Self {
        let directory = std::env::temp_dir().join(format!("vfio-real-{name}"));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        let listen = |name: &str| UnixListener::bind(directory.join(name)).unwrap();
        let (guest, monitor) = (listen("guest"), listen("monitor"));
        command.args(["120", "qemu-system-x86_64", "-machine", "q35,accel=qtest", "-m", "64", "-nodefaults"]);
        command.args(["-display", "none", "-no-user-config", "-nic", "none"]);
        command.arg("-qtest").arg(format!("unix:{}", directory.join("guest").display()));
        command.args(["-qtest-log", "none"]);
        command.arg("-qmp").arg(format!("unix:{}", directory.join("monitor").display()));
        command.arg("-pidfile").arg(directory.join("pid"));
        let child = command.args(devices).stdin(Stdio::null()).spawn().unwrap();
        let accept = |listener: UnixListener| BufReader::new(listener.accept().unwrap().0);
        let mut qemu = Self { child, monitor: accept(monitor), guest: accept(guest), directory };
        qemu.monitor.read_line(&mut String::new()).unwrap();
        qemu.qmp("qmp_capabilities");
        // An answer comes from the main loop, so everything is set up by then.
        qemu.write_config(0, 0x3c, 0);
        qemu
    }

    pub(crate) fn pidfile(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("vfio-real-{name}/pid"))
    }

    pub(crate) fn pid(&self) -> u32 {
        fs::read_to_string(self.directory.join("pid")).unwrap().trim().parse().unwrap()
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.guest.get_mut(), "{line}").unwrap();
        let mut answer = String::new();
        self.guest.read_line(&mut answer).unwrap();
        assert!(answer.starts_with("OK"), "{line}: {answer}");
        answer
    }

    /// What the guest's processor does to write 16 bits of configuration space.
    pub(crate) fn write_config(&mut self, slot: u32, offset: u32, value: u16) {
        self.ask(&format!("outl 0xcf8 {:#x}", 0x8000_0000 | slot << 11 | offset & 0xfc));
        self.ask(&format!("outw {:#x} {value:#x}", 0xcfc + (offset & 2)));
    }

    pub(crate) fn read_config(&mut self, slot: u32, offset: u32) -> u16 {
        self.ask(&format!("outl 0xcf8 {:#x}", 0x8000_0000 | slot << 11 | offset & 0xfc));
        let answer = self.ask(&format!("inw {:#x}", 0xcfc + (offset & 2)));
        let value = answer.trim().trim_start_matches("OK 0x");
        u16::from_str_radix(value, 16).unwrap()
    }

    /// Offset of a capability in the guest's view.
    pub(crate) fn capability(&mut self, slot: u32, id: u8) -> u32 {
        let mut at = u32::from(self.read_config(slot, 0x34) & 0xfc);
        while at != 0 {
            let [this, next] = self.read_config(slot, at).to_le_bytes();
            if this == id {
                return at;
            }
            at = u32::from(next & 0xfc);
        }
        panic!("no capability {id:#x}");
    }

    /// One MSI vector for the guest itself, as its driver enables it.
    pub(crate) fn enable_msi(&mut self, slot: u32) {
        let at = self.capability(slot, 5);
        self.write_config(slot, at + 4, 0);
        self.write_config(slot, at + 6, 0xfee0);
        self.write_config(slot, at + 2, 0x0001);
    }

    pub(crate) fn disable_msi(&mut self, slot: u32) {
        let at = self.capability(slot, 5);
        self.write_config(slot, at + 2, 0);
    }

    pub(crate) fn qmp(&mut self, command: &str) {
        writeln!(self.monitor.get_mut(), "{{\"execute\": \"{command}\"}}").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.monitor.read_line(&mut line).unwrap(), 0, "QEMU left");
            if line.contains("\"return\"") {
                break;
            }
            assert!(!line.contains("\"error\""), "{line}");
        }
    }

    /// SIGKILL, as an out-of-memory killer sends it.
    pub(crate) fn kill(mut self) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // `timeout` passes it on, which it could not do with SIGKILL.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
