// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptions of emulated hosts, and what of them goes on QEMU's command line.

use crate::iommu::Iommu;
use crate::provision::IMAGE;
use std::path::PathBuf;
use virtio_irq_lab_agent::PORT;

/// Mount tag of the Debian tree.
pub(crate) const TREE: &str = "tree";

/// Kernel arguments that shorten the start of any machine and change nothing that a scenario looks at: no self-tests of
/// cryptography, no probing of 255 buses that do not exist, no security modules but the one that the daemon confines itself with,
/// and no defence against processors that speculate, which an emulated one does not and pays for at every exit of a guest.
const QUICK: &[&str] =
    &["quiet", "cryptomgr.notests", "pci=lastbus=0,noearly", "lsm=landlock", "mitigations=off"];

/// The kernel would panic if a busy machine did not let the emulated timer tick in time, and warn of a processor that was not let run
/// for half a minute. What hangs for two minutes is warned of, and what hangs for ever ends the scenario.
const PATIENT: &[&str] = &["no_timer_check", "watchdog_thresh=60", "rcupdate.rcu_cpu_stall_timeout=120"];

/// Whatever the kernel would warn of is a failure of what runs on it.
const PANIC_ON_WARNING: &str = "panic_on_warn=1";

/// A board without what would be probed and is not used.
const Q35: &str = "q35,sata=off,smbus=off,i8042=off,hpet=off";

/// A guest's processor. Without paravirtual ends of interrupts, each interrupt's handler begins with an exit of the guest.
///
/// QEMU's TCG needs that: VMRUN leaves an interrupt that it injected as a pending exception (target/i386/tcg/system/svm_helper.c),
/// which only the guest's next exit clears. If QEMU's main loop kicks the processor while its thread is not running, the loop
/// in accel/tcg/cpu-exec.c takes that exception for a new one and delivers it again, into the handler and with interrupts off.
/// A timer's handler then waits for ever for the clock's lock, which its own first run holds.
const GUEST_CPU: &str = "max,kvm-pv-eoi=off";

/// The emulated host of a scenario.
#[derive(Debug, Clone)]
pub struct Machine {
    cpu: &'static str,
    memory: u32,
    cpus: u32,
    iommu: Option<&'static Iommu>,
    devices: Vec<String>,
    wifi_cards: Vec<String>,
    modules: Vec<&'static str>,
    own_modules: Vec<PathBuf>,
    files: Vec<PathBuf>,
    extra: Vec<String>,
    arguments: Vec<String>,
    channels: usize,
    guest_files: Vec<PathBuf>,
}

impl Machine {
    /// A host with this IOMMU, and an AMD processor whatever the IOMMU is, because the virtualization that QEMU
    /// can emulate for a nested KVM is AMD's. One guest can run at a time.
    #[must_use]
    pub fn new(iommu: &'static Iommu) -> Self {
        Self {
            cpu: "EPYC,+svm,+npt",
            memory: 2048,
            // With a second one, what GUEST_CPU is about happens all the time: each kick from its thread is one too many.
            cpus: 1,
            iommu: Some(iommu),
            devices: Vec::new(),
            wifi_cards: Vec::new(),
            modules: vec!["9p", "9pnet_virtio", "vfio-pci", "vfio_iommu_type1", "kvm-amd"],
            own_modules: Vec::new(),
            files: Vec::new(),
            extra: Vec::new(),
            arguments: vec![iommu.argument.to_owned()],
            channels: 1,
            guest_files: Vec::new(),
        }
    }

    /// A machine with two processors that is nobody's host: no IOMMU, no VFIO, no KVM. It stands for a guest whose devices are all
    /// beside it. Whatever its kernel would warn of makes it panic, which ends it.
    #[must_use]
    pub fn bare() -> Self {
        Self {
            cpu: "max",
            memory: 512,
            cpus: 2,
            iommu: None,
            modules: vec!["9p", "9pnet_virtio"],
            arguments: vec![PANIC_ON_WARNING.to_owned()],
            channels: 0,
            ..Self::new(&Iommu::VTD)
        }
    }

    /// Adds a device, as QEMU's `-device` has it.
    #[must_use]
    pub fn device(mut self, device: &str) -> Self {
        self.devices.push(device.to_owned());
        self
    }

    /// Appends arguments for QEMU.
    #[must_use]
    pub fn with(mut self, arguments: impl IntoIterator<Item = String>) -> Self {
        self.extra.extend(arguments);
        self
    }

    /// Puts files into its boot image.
    #[must_use]
    pub fn carrying(mut self, files: &[PathBuf]) -> Self {
        self.files.extend_from_slice(files);
        self
    }

    /// Its memory in MiB.
    pub(crate) fn memory(&self) -> u32 {
        self.memory
    }

    /// Adds the model of a WCN6855 at `slot` of its root bus, such as `05.0`.
    #[must_use]
    pub fn wifi_card(mut self, slot: &str) -> Self {
        self.wifi_cards.push(slot.to_owned());
        self
    }

    /// Puts a file, or a directory with all that is in it, into the boot image of its guests.
    #[must_use]
    pub fn guest_file(mut self, path: PathBuf) -> Self {
        self.guest_files.push(path);
        self
    }

    /// Lets these modules, in this order, take the place of the stock ones of VFIO.
    #[must_use]
    pub fn vfio_modules(mut self, modules: impl IntoIterator<Item = PathBuf>) -> Self {
        self.modules.retain(|module| !module.starts_with("vfio"));
        self.own_modules.extend(modules);
        self
    }

    /// Adds a module that its kernel loads.
    #[must_use]
    pub fn module(mut self, module: &'static str) -> Self {
        self.modules.push(module);
        self
    }

    /// Adds an argument of its kernel.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// How many guests can run at a time.
    #[must_use]
    pub fn guests(mut self, count: usize) -> Self {
        self.channels = count;
        self
    }

    /// The slots of its Wi-Fi cards.
    pub(crate) fn wifi_cards(&self) -> &[String] {
        &self.wifi_cards
    }

    /// What goes into the boot image of its guests besides the drivers.
    pub(crate) fn guest_files(&self) -> &[PathBuf] {
        &self.guest_files
    }

    /// The modules of its kernel's package that it loads.
    pub(crate) fn modules(&self) -> &[&'static str] {
        &self.modules
    }

    /// What goes into its boot image besides modules and the daemon.
    pub(crate) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// What its kernel loads after these, that is not of its package.
    pub(crate) fn own_modules(&self) -> &[PathBuf] {
        &self.own_modules
    }

    /// How many guests can run at a time.
    pub(crate) fn channels(&self) -> usize {
        self.channels
    }

    /// QEMU's arguments. `sockets` are the descriptors of the agents' channels: the host's own, then one for each guest.
    /// `monitor` is that of QEMU's monitor.
    pub(crate) fn arguments(&self, initramfs: &str, sockets: &[i32], monitor: i32) -> Vec<String> {
        let mut line = Line::default();
        line.pair("-machine", Q35)
            .pair("-accel", "tcg,tb-size=1024")
            .pair("-cpu", self.cpu)
            .pair("-smp", self.cpus)
            .pair("-m", self.memory);
        if let Some(iommu) = self.iommu {
            line.pair("-device", iommu.device);
            for event in iommu.events {
                line.pair("-trace", event);
            }
        }
        kernel(&mut line, initramfs, &self.arguments);
        line.pair("-no-reboot", "")
            .pair("-chardev", format!("socket,id=monitor,fd={monitor}"))
            .pair("-mon", "chardev=monitor,mode=control")
            .pair("-fsdev", format!("local,id={TREE},path=/,security_model=none,readonly=on,multidevs=remap"))
            .pair("-device", format!("virtio-9p-pci,fsdev={TREE},mount_tag={TREE}"))
            .pair("-device", serial(sockets.len()));
        for (index, socket) in sockets.iter().enumerate() {
            let name = index.checked_sub(1).map_or_else(|| PORT.to_owned(), channel);
            line.pair("-chardev", format!("socket,id=channel{index},fd={socket}"))
                .pair("-device", format!("virtserialport,chardev=channel{index},name={name}"));
        }
        for device in &self.devices {
            line.pair("-device", device);
        }
        line.0.extend(self.extra.iter().cloned());
        line.0
    }
}

/// A guest of an emulated host: stock kernel, no IOMMU of its own.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Memory in MiB.
    pub memory: u32,
    /// Which of the host's channels it uses.
    pub channel: usize,
    /// Functions of the host that it gets: QEMU's options of each.
    pub assigned: Vec<String>,
    /// Further arguments for QEMU.
    pub extra: Vec<String>,
    /// What QEMU's command line is given to, if it is not run as it is.
    pub launcher: Vec<String>,
}

impl Guest {
    /// A guest without any assigned function.
    #[must_use]
    pub fn plain() -> Self {
        Self { memory: 128, channel: 0, assigned: Vec::new(), extra: Vec::new(), launcher: Vec::new() }
    }

    /// Assigns a function of the host, seen by the guest at slot `at`, which has the form `06.0`. `options` are further ones
    /// of QEMU's `vfio-pci`.
    #[must_use]
    pub fn assign(mut self, function: &str, at: &str, options: &str) -> Self {
        let comma = if options.is_empty() { "" } else { "," };
        self.assigned.push(format!("host={function},addr={at}{comma}{options}"));
        self
    }

    /// Appends arguments for QEMU.
    #[must_use]
    pub fn with(mut self, arguments: impl IntoIterator<Item = String>) -> Self {
        self.extra.extend(arguments);
        self
    }

    /// Lets this program start QEMU, and become it: QEMU's command line is appended to its own.
    #[must_use]
    pub fn launched_by(mut self, launcher: impl IntoIterator<Item = String>) -> Self {
        self.launcher.extend(launcher);
        self
    }

    pub(crate) fn arguments(&self, initramfs: &str) -> Vec<String> {
        let mut line = Line(self.launcher.clone());
        line.0.push("qemu-system-x86_64".to_owned());
        line.pair("-machine", Q35).pair("-accel", "kvm").pair("-cpu", GUEST_CPU).pair("-m", self.memory);
        kernel(&mut line, initramfs, &[PANIC_ON_WARNING.to_owned()]);
        line.pair("-device", serial(1))
            // A port of the host is no terminal and no pair of pipes, and QEMU opens it as both directions in one.
            .pair("-chardev", format!("pipe,id=channel,path=/dev/virtio-ports/{}", channel(self.channel)))
            .pair("-device", format!("virtserialport,chardev=channel,name={PORT}"));
        for options in &self.assigned {
            line.pair("-device", format!("vfio-pci,{options}"));
        }
        line.0.extend(self.extra.iter().cloned());
        line.0
    }
}

/// A controller for this many ports. Every port that could be there is set up at boot, so there are no more; and QEMU keeps the first
/// for a console.
fn serial(ports: usize) -> String {
    format!("virtio-serial-pci,max_ports={}", ports + 1)
}

/// The name of a host's port to its guest on a channel.
fn channel(index: usize) -> String {
    format!("virtio-irq.guest{index}")
}

/// What every machine has: the kernel without firmware's detours, its console on standard output, nothing by default.
fn kernel(line: &mut Line, initramfs: &str, arguments: &[String]) {
    let own = ["console=ttyS0", "panic=-1"].iter().chain(QUICK).chain(PATIENT).map(|&word| word.to_owned());
    let append: Vec<_> = own.chain(arguments.iter().cloned()).collect();
    line.pair("-bios", "qboot.rom")
        .pair("-kernel", format!("/{IMAGE}"))
        .pair("-initrd", initramfs)
        .pair("-append", append.join(" "))
        .pair("-display", "none")
        .pair("-nodefaults", "")
        .pair("-no-user-config", "")
        .pair("-nic", "none")
        .pair("-chardev", "stdio,id=console,signal=off")
        .pair("-serial", "chardev:console");
}

#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    /// An option and its value; an empty value is an option without one.
    fn pair(&mut self, option: &str, value: impl ToString) -> &mut Self {
        self.0.push(option.to_owned());
        let value = value.to_string();
        if !value.is_empty() {
            self.0.push(value);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(arguments: &[String], option: &str, value: &str) -> bool {
        arguments.windows(2).any(|pair| pair[0] == option && pair[1] == value)
    }

    #[test]
    fn each_guest_of_a_host_has_a_channel_of_its_own() {
        let arguments =
            Machine::new(&Iommu::VTD).guests(2).device("edu,addr=05.0").arguments("/x", &[7, 8, 9], 6);
        assert!(has(&arguments, "-chardev", "socket,id=channel0,fd=7"));
        assert!(has(&arguments, "-device", "virtserialport,chardev=channel0,name=virtio-irq.lab"));
        assert!(has(&arguments, "-device", "virtserialport,chardev=channel2,name=virtio-irq.guest1"));
        assert!(has(&arguments, "-device", "edu,addr=05.0"));
    }

    #[test]
    fn a_guest_gets_its_function_and_panics_on_warnings() {
        let arguments =
            Guest::plain().assign("0000:00:05.0", "06.0", "").with(["-S".to_owned()]).arguments("/x");
        assert!(has(&arguments, "-device", "vfio-pci,host=0000:00:05.0,addr=06.0"));
        assert!(arguments.iter().any(|argument| argument.contains("panic_on_warn=1")));
        assert_eq!(arguments.last().unwrap(), "-S");
    }

    #[test]
    fn no_machine_has_a_network() {
        for arguments in [Machine::new(&Iommu::VTD).arguments("/x", &[3], 4), Guest::plain().arguments("/x")]
        {
            assert!(has(&arguments, "-nic", "none"));
        }
    }
}
