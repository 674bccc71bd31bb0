// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A running emulated host, and what runs on it.

use crate::agent::{Agent, clear_logs};
use crate::artifacts::Artifacts;
use crate::companion::Companion;
use crate::error::{At, Error, Result};
use crate::initramfs;
use crate::layout::Layout;
use crate::machine::{Guest, Machine, TREE};
use crate::modules;
use crate::monitor::Monitor;
use crate::process::Process;
use crate::program::enclosed;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc::SIGKILL;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use virtio_irq_lab_agent::{End, Operation, PAYLOAD};

/// How long a machine may take to start: twenty times of what it does take, for machines that have other things to do too.
/// One that crashes is noticed long before.
const START: Duration = Duration::from_secs(150);

/// How long a guest may take to be off after it was told.
const STOP: Duration = Duration::from_secs(60);

/// A machine that hangs need not answer.
const DIAGNOSIS: Duration = Duration::from_secs(20);

/// Looks at what the processor of a machine that hangs does, and the time between two of them.
const SAMPLES: usize = 20;
const BETWEEN_SAMPLES: Duration = Duration::from_millis(100);

const HOST_IMAGE: &str = "host.cpio";
const GUEST_IMAGE: &str = "guest.cpio";

/// A running emulated host. Dropped, it is switched off at once, with all that runs on it.
#[derive(Debug)]
pub struct Host {
    agent: Agent,
    guests: Vec<Agent>,
    images: PathBuf,
    qemu: Arc<Mutex<Child>>,
    monitor: Monitor,
    cards: Vec<Companion>,
    /// Dropping it ends the watchdog.
    _alive: mpsc::Sender<()>,
}

impl Host {
    /// Boots `machine` for the scenario `name`, and leaves it with its modules loaded and the Debian tree as its root.
    ///
    /// After `limit` it is switched off, whatever the scenario does, and every operation on it fails.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn boot(
        layout: &Layout,
        artifacts: &Artifacts,
        name: &str,
        machine: &Machine,
        limit: Duration,
    ) -> Result<Self> {
        let logs = layout.logs(name);
        clear_logs(&logs)?;
        let mut modules = modules::closure(layout, machine.modules())?;
        modules.extend_from_slice(machine.own_modules());
        let images = Layout::images(name);
        let payload = [&modules[..], std::slice::from_ref(&artifacts.daemon), machine.files()].concat();
        initramfs::write(&layout.outside(&images.join(HOST_IMAGE)), &artifacts.agent, &payload)?;
        // The daemon's program is also the doctor that looks at a guest from inside.
        let daemon = std::slice::from_ref(&artifacts.daemon);
        let payload = [&artifacts.guest[..], daemon, machine.guest_files()].concat();
        initramfs::write(&layout.outside(&images.join(GUEST_IMAGE)), &artifacts.agent, &payload)?;

        let pairs: std::io::Result<Vec<_>> = (0..=machine.channels()).map(|_| UnixStream::pair()).collect();
        let (ours, theirs): (Vec<_>, Vec<_>) = pairs.at("socket pair")?.into_iter().unzip();
        let (monitor, monitored) = UnixStream::pair().at("socket pair")?;
        let (cards, complete) = wifi_cards(layout, artifacts, &logs, &images, machine)?;
        let child = start(layout, &logs, &complete, &images.join(HOST_IMAGE), &theirs, &monitored)?;
        // QEMU's end must be QEMU's alone, or its death would not be seen.
        drop((theirs, monitored));
        let monitor = Monitor::new(monitor)?;
        let qemu = Arc::new(Mutex::new(child));
        let alive = watch(&qemu, limit);
        let mut agents = ours.into_iter().enumerate().map(|(index, stream)| {
            let name = match index {
                0 => "host".to_owned(),
                1 if machine.channels() == 1 => "guest".to_owned(),
                _ => format!("guest{index}"),
            };
            Agent::new(&name, stream, &logs)
        });
        let agent = agents.next().ok_or_else(|| Error::Unexpected("a host without a channel".into()))??;
        let guests = agents.collect::<Result<_>>()?;
        let host = Self { agent, guests, images, qemu, monitor, cards, _alive: alive };
        host.agent.started(host.agent.expect_start(), START)?;
        for module in &modules {
            let name = module.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            host.agent.perform(Operation::LoadModule { name, parameters: String::new() })?;
        }
        host.agent.perform(Operation::EnterTree { tag: TREE.to_owned() })?;
        host.monitor.greet()?;
        Ok(host)
    }

    /// The host's agent.
    #[must_use]
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The models of the machine's Wi-Fi cards, in the order of the machine's description.
    #[must_use]
    pub fn wifi_cards(&self) -> &[Companion] {
        &self.cards
    }

    /// Takes a function from whatever driver has it and gives it to vfio-pci.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn bind_to_vfio(&self, function: &str) -> Result<()> {
        let device = format!("/sys/bus/pci/devices/{function}");
        self.agent.write(&format!("{device}/driver_override"), "vfio-pci")?;
        if self.agent.link(&format!("{device}/driver")).is_ok() {
            self.agent.write(&format!("{device}/driver/unbind"), function)?;
        }
        self.agent.write("/sys/bus/pci/drivers_probe", function)
    }

    /// The monitor of the QEMU that emulates it.
    pub(crate) fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// Lets the kernels of the host and its guests log what hangs, for whoever reads the logs of a scenario that did. Nothing is
    /// returned: it is the last that is asked of them.
    pub fn log_what_hangs(&self) {
        // First what the processor does, host or guest, before anything is asked of either.
        for _ in 0..SAMPLES {
            match self.monitor.ask("info registers") {
                Ok(registers) => self.agent.note("processor", &registers),
                Err(error) => eprintln!("no diagnosis of the host's processor: {error}"),
            }
            std::thread::sleep(BETWEEN_SAMPLES);
        }
        for agent in self.guests.iter().chain([&self.agent]) {
            // Blocked tasks, then what the processors do.
            for request in ["w", "l"] {
                let asked = agent.write_within("/proc/sysrq-trigger", request, DIAGNOSIS);
                if let Err(error) = asked {
                    eprintln!("no diagnosis from inside: {error}");
                    break;
                }
            }
            // The log follows the answer on the same channel; this comes after it.
            let _: Result<String> = agent.read("/proc/uptime");
        }
        let waits = "for task in /proc/[0-9]*/task/*; do echo \"$task $(cat $task/comm $task/stat $task/wchan)\"; done";
        match self.agent.run(&["/bin/sh", "-c", waits]) {
            Ok(tasks) => self.agent.note("tasks", &tasks),
            Err(error) => eprintln!("no diagnosis of the host's processes: {error}"),
        }
    }

    /// Starts a process, its output going to a log named for it.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn spawn(&self, name: &str, argv: &[String]) -> Result<Process> {
        let id = self.agent.spawn(name, argv)?;
        Ok(Process { name: name.to_owned(), id, agent: self.agent.clone() })
    }

    /// Starts `guest` and waits until its agent is there.
    ///
    /// # Errors
    ///
    /// If QEMU or the guest does not start.
    pub fn start_guest(&self, name: &str, guest: &Guest) -> Result<RunningGuest> {
        let channel = self.guests.get(guest.channel);
        let agent =
            channel.ok_or_else(|| Error::Unexpected(format!("no channel {}", guest.channel)))?.clone();
        let image = self.images.join(GUEST_IMAGE).display().to_string();
        agent.revive(self.agent.process_log(name));
        let count = agent.expect_start();
        let qemu = self.spawn(name, &guest.arguments(&image))?;
        let (watched, told) = (qemu.clone(), agent.clone());
        let watcher = std::thread::spawn(move || {
            let end = watched.wait(Duration::MAX);
            told.lost(&match &end {
                Ok(Some(end)) => format!("QEMU ended: {end}"),
                Ok(None) => "QEMU runs, but nobody looks after it".to_owned(),
                Err(error) => error.to_string(),
            });
            end
        });
        let guest = RunningGuest { agent, qemu, watcher };
        guest.agent.started(count, START)?;
        Ok(guest)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        kill(&self.qemu);
    }
}

/// A guest and its QEMU.
#[derive(Debug)]
pub struct RunningGuest {
    agent: Agent,
    qemu: Process,
    watcher: std::thread::JoinHandle<Result<Option<End>>>,
}

impl RunningGuest {
    /// The guest's agent.
    #[must_use]
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Its QEMU.
    #[must_use]
    pub fn qemu(&self) -> &Process {
        &self.qemu
    }

    /// Restarts the guest, in the same QEMU, and waits until it is up.
    ///
    /// # Errors
    ///
    /// If it does not come back.
    pub fn reboot(&self) -> Result<()> {
        let count = self.agent.expect_start();
        self.agent.tell(Operation::Reboot)?;
        self.agent.started(count, START).map(drop)
    }

    /// Switches the guest off and waits for QEMU's end.
    ///
    /// # Errors
    ///
    /// If QEMU does not end.
    pub fn power_off(self) -> Result<End> {
        self.agent.tell(Operation::PowerOff)?;
        self.ends("switching off")
    }

    /// Kills QEMU, without a word to the guest, and waits for its end.
    ///
    /// # Errors
    ///
    /// If QEMU does not end.
    pub fn kill(self) -> Result<End> {
        self.qemu.signal(SIGKILL)?;
        self.ends("killing QEMU")
    }

    /// Waits for QEMU's end, for which there is a reason already.
    ///
    /// # Errors
    ///
    /// If QEMU does not end.
    pub fn ends(self, what: &str) -> Result<End> {
        match self.qemu.wait(STOP)? {
            Some(end) => {
                // It has seen the same end, and must not speak of it to the next guest.
                drop(self.watcher.join());
                Ok(end)
            }
            None => {
                let (what, log) = (what.to_owned(), self.qemu.log());
                let machine = self.agent.machine().to_owned();
                Err(Error::Late { machine, what, seconds: STOP.as_secs(), log })
            }
        }
    }
}

/// Where a host finds a file of its payload.
#[must_use]
pub fn payload(name: &str) -> String {
    format!("{PAYLOAD}/{name}")
}

/// Starts the models of the machine's Wi-Fi cards in the tree, and adds to the machine what shows them to it.
fn wifi_cards(
    layout: &Layout,
    artifacts: &Artifacts,
    logs: &Path,
    images: &Path,
    machine: &Machine,
) -> Result<(Vec<Companion>, Machine)> {
    let (mut cards, mut complete) = (Vec::new(), machine.clone());
    for (index, slot) in machine.wifi_cards().iter().enumerate() {
        let socket = images.join(format!("wcn6855-{index}.sock")).display().to_string();
        let model = artifacts.wcn6855.display().to_string();
        let log = logs.join(format!("wcn6855-{index}.log"));
        let argv = [model.as_str(), "--socket-path", &socket];
        cards.push(Companion::start(&layout.tree(), &argv, "serving on", &log)?);
        let device = serde_json::json!({
            "driver": "vfio-user-pci", "addr": slot, "socket": { "type": "unix", "path": socket },
        });
        complete = complete.device(&device.to_string());
    }
    Ok((cards, complete))
}

/// Starts QEMU in the tree, with `sockets` as its channels and `monitor` as its monitor.
fn start(
    layout: &Layout,
    logs: &Path,
    machine: &Machine,
    initramfs: &Path,
    sockets: &[UnixStream],
    monitor: &UnixStream,
) -> Result<Child> {
    for socket in sockets.iter().chain([monitor]) {
        fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).map_err(std::io::Error::from).at("socket pair")?;
    }
    let numbers: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let log = |name: &str| {
        let path = logs.join(name);
        File::create(&path).at(&path)
    };
    let arguments = machine.arguments(&initramfs.display().to_string(), &numbers, monitor.as_raw_fd());
    // With /proc, by which QEMU's 9p server comes to extended attributes; without it each has ENOENT, and so has an overlay.
    enclosed("chroot", Some(&layout.tree().join("proc")))
        .arg(layout.tree())
        .arg("qemu-system-x86_64")
        .args(&arguments)
        .stdout(log("host-console.log")?)
        .stderr(log("host-qemu.log")?)
        .spawn()
        .at("setpriv")
}

/// Switches the machine off when `limit` is over, unless the returned sender is dropped before.
fn watch(qemu: &Arc<Mutex<Child>>, limit: Duration) -> mpsc::Sender<()> {
    let (alive, ended) = mpsc::channel::<()>();
    let qemu = Arc::clone(qemu);
    std::thread::spawn(move || {
        if ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("time limit of {} s: the emulated host is switched off", limit.as_secs());
            kill(&qemu);
        }
    });
    alive
}

fn kill(qemu: &Mutex<Child>) {
    let mut qemu = qemu.lock().unwrap_or_else(PoisonError::into_inner);
    // It may have ended by itself.
    let _: std::io::Result<()> = qemu.kill();
    let _: std::io::Result<std::process::ExitStatus> = qemu.wait();
}
