// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.

mod ctl;
mod exec;
mod qemu;

pub use ctl::{CtlArgs, CtlError};
pub use exec::{ExecArgs, ExecError};
pub use qemu::{ArgsFormat, QemuArgs};

use crate::admission::{Admission, AdmissionError, DeviceSpec, Model, TooFewFiles, allow_files_for};
use crate::bridge::{Bridge, BridgeError};
use crate::control::{About, Control, ControlError};
use crate::device::{Quota, RateLimit};
use crate::doctor::DoctorArgs;
use crate::log::{Log, LogFormat, LogLevel};
use crate::opener::{self, Opener};
use crate::sandbox::{self, Confinement, Needs, SandboxError};
use crate::serve::{SocketError, Stop, Transport, serve};
use crate::vfio::{DeviceSource, ToldProcess};
use crate::vmm::{Inquirer, Inquiry};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use tracing::{error, info, warn};
use virtio_irq_proto::FunctionId;

/// Tells a guest the MSI messages that this host really programmed for the PCI functions assigned to it.
///
/// The VMM connects to the daemon's socket and shows its guest a virtio-irq device. `vhost-device-irq qemu-args`
/// prints the options that QEMU needs for it.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_long_help = EXAMPLES
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    daemon: DaemonArgs,
}

const EXAMPLES: &str = "\
Examples:
  A Wi-Fi card that the guest sees at 00:06.0:
    vhost-device-irq --socket-path /run/irq.sock --device 0000:02:00.0,guest=00:06.0

  Two functions, the ids chosen:
    vhost-device-irq --socket-path /run/irq.sock --device 02:00.0,id=7 --device 03:00.1,id=9

  All that is assigned to a guest, as QEMU says:
    vhost-device-irq --socket-path /run/irq.sock --qmp /run/qmp.sock

  Without any hardware:
    vhost-device-irq --socket-path /tmp/irq.sock --device sim:wcn6855,guest=00:06.0

  QEMU beside it:
    eval qemu-system-x86_64 ... \\
        \"$(vhost-device-irq qemu-args --socket-path /run/irq.sock --memory 4G)\"

Exit codes:
  0  told to end by SIGTERM or SIGINT, or the frontend of --fd left
  1  the device or the socket cannot be used; the message says why and what to do
  2  the command line is wrong";

const DEVICE_HELP: &str = "\
A function that is assigned to the guest. Repeatable; ids count from 0 in this order unless given

ADDRESS[,guest=ADDRESS][,id=N][,vfio=pid:N|pidfile:PATH|socket:PATH|cdev:PATH]
    A PCI function of this host, bound to vfio-pci.\n    \
    guest= is where the guest sees it; the guest's drivers find it by that, and by its PCI ids without it.\n    \
    vfio= is how the daemon gets the VFIO device that the VMM has open. Event delivery needs it; so do the messages of \
    an MSI-X table where the kernel lets nobody else map that (most kernels of distributions). The messages of MSI do \
    not. With pid: and pidfile: it is taken from the VMM's process, with socket: somebody hands it in. With cdev: the \
    daemon opens the device itself and lends it to `vhost-device-irq exec`, which needs a kernel with IOMMUFD.

sim:KIND[,guest=ADDRESS][,id=N]
sim:vectors=N[,type=msi|msix][,guest=ADDRESS][,id=N]
    A simulated function that raises no interrupts. KIND is edu, wcn6855, wcn7850 or igb.
";

const DOCTOR_HELP: &str = "\
Examples:
  One card, before it is assigned to a guest and when something does not work:
    vhost-device-irq doctor 02:00.0

  From inside of the guest:
    vhost-device-irq doctor --guest

Exit codes:
  0  it works
  1  the doctor could not write what it found
  2  the command line is wrong
  3  it works once somebody does what stands behind each #
  4  it cannot work";

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what keeps virtio-irq from working on this machine, and what to do about it
    ///
    /// Looks at the IOMMU, at interrupt remapping, at the functions, at QEMU and at the kernel's log. Changes nothing and
    /// needs no daemon; as root it sees most.
    #[command(after_long_help = DOCTOR_HELP)]
    Doctor(DoctorArgs),
    /// Print the QEMU options that connect a VM to the daemon
    ///
    /// They go onto its command line beside those of the functions that are assigned. For QEMU 10.2 and later.
    #[command(after_long_help = qemu::EXAMPLES)]
    QemuArgs(QemuArgs),
    /// Become QEMU with VFIO devices that a daemon opened and lends (vfio=cdev:PATH)
    ///
    /// QEMU gets the open devices as fd=, and binds them to an IOMMUFD. They are the daemon's again when QEMU ends.
    #[command(after_long_help = exec::EXAMPLES)]
    Exec(ExecArgs),

    /// Ask a running daemon what there is and what happens, and change it
    Ctl(CtlArgs),
    /// Open what a confined daemon may not
    #[command(hide = true, name = opener::SUBCOMMAND)]
    Opener,
}

#[derive(Args, Debug)]
struct DaemonArgs {
    /// Listen at PATH for frontends, one after another; a second one waits until the first leaves. A socket that
    /// an ended process left there is replaced. Only the user of the daemon can connect
    #[arg(long, value_name = "PATH", conflicts_with = "fd",
        required_unless_present_any = ["fd", "print_capabilities"])]
    socket_path: Option<PathBuf>,

    /// Use the Unix socket that was inherited as descriptor N: a connected one (the daemon ends when the frontend
    /// leaves) or a listening one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(0..))]
    fd: Option<RawFd>,

    /// A function that is assigned to the guest. Repeatable; ids count from 0 in this order unless given
    #[arg(
        long = "device",
        value_name = "SPEC",
        required_unless_present_any = ["print_capabilities", "control_socket", "qmp"],
        long_help = DEVICE_HELP
    )]
    devices: Vec<DeviceSpec>,

    /// Ask QEMU at its QMP socket PATH which process it is and where its guest sees each function, so that guest= and
    /// vfio= need not be given. Without --device, all functions that are assigned to the guest are served
    ///
    /// QEMU is asked when it connects and when its guest's driver starts. QEMU makes the socket with -qmp
    /// unix:PATH,server=on,wait=off, for the daemon alone: QMP serves one client at a time. Where QEMU does not answer, the guest is
    /// served with what else is known; the log and `ctl status` say why
    #[arg(long, value_name = "PATH")]
    qmp: Option<PathBuf>,

    /// Serve functions whose interrupts the platform does not check. A guest can then raise any interrupt of the
    /// host; VFIO needs its own permission for it too (allow_unsafe_interrupts of vfio_iommu_type1)
    #[arg(long)]
    allow_unsafe_interrupts: bool,

    /// Greatest number of interrupt sources that the guest may hold at one time. A driver sizes its tables by it
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(..=65536))]
    max_sources: u32,

    /// Greatest number of interrupt sources that the guest may hold of one function
    #[arg(long, value_name = "N", default_value_t = 2048)]
    max_sources_per_function: u32,

    /// Greatest number of interrupts in a second that one source may raise without delay, and a tenth of that at
    /// once. What is beyond is merged and delivered later; other sources are not delayed. Without it one source can
    /// take up a CPU of the host
    #[arg(long, value_name = "N")]
    source_rate_limit: Option<NonZeroU32>,

    /// Listen at PATH for `vhost-device-irq ctl`, and for whoever else reads what happens or adds and takes away functions
    /// while the guest runs. Only the user of the daemon can connect
    #[arg(long, value_name = "PATH")]
    control_socket: Option<PathBuf>,
    /// Whether to give up everything that the daemon does not need, before it listens to anybody: all capabilities,
    /// most system calls (seccomp), and the file system but for reading /sys and /proc (Landlock)
    #[arg(long, value_enum, value_name = "WHETHER", default_value_t = Sandbox::On)]
    sandbox: Sandbox,

    /// How much to say on standard error
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = LogLevel::Info)]
    log_level: LogLevel,

    /// How to say it
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    /// Print what the program can do, as JSON, and exit (QEMU's docs/interop/vhost-user.json)
    #[arg(long)]
    print_capabilities: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sandbox {
    /// What this kernel has of it; what it has not is a warning
    On,
    /// For debugging
    Off,
}

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum Error {
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("--device {name} is given twice: name every function once")]
    SameDevice { name: String },
    #[error("two of the --device options have the id {id}: give each its own id=")]
    SameId { id: FunctionId },
    #[error("no id is left for --device {name}: give smaller ids with id=")]
    NoId { name: String },
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Ctl(#[from] CtlError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Files(#[from] TooFewFiles),
    #[error("cannot start the process that opens for the daemon: {0}; /proc has to be mounted")]
    Opener(io::Error),
    #[error("{0}: a confinement around the daemon forbids it, widen that one or give --sandbox=off")]
    Sandbox(#[from] SandboxError),
    #[error("cannot serve: {0}")]
    Serve(#[from] io::Error),
    #[error("cannot write to standard output: {0}")]
    Print(io::Error),
}

impl Error {
    /// 2 where the command line contradicts itself, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::SameDevice { .. } | Self::SameId { .. } | Self::NoId { .. } => 2,
            Self::Ctl(error) => error.exit_code(),
            _ => 1,
        }
    }
}

impl Cli {
    /// Does what the command line says. Returns the program's exit code.
    ///
    /// # Errors
    /// One sentence for the operator.
    pub fn run(self) -> Result<u8, Error> {
        match self.command {
            Some(Command::Doctor(args)) => {
                return args.run().map(|verdict| verdict.exit_code()).map_err(Error::Print);
            }
            Some(Command::QemuArgs(args)) => args.print().map_err(Error::Print),
            Some(Command::Exec(args)) => match args.run()? {},
            Some(Command::Ctl(args)) => Ok(args.run()?),
            Some(Command::Opener) => opener::serve(io::stdin().as_fd()).map_err(Error::Opener),
            None if self.daemon.print_capabilities => print_capabilities().map_err(Error::Print),
            None => match (self.daemon.log_format, self.daemon.run()) {
                // Whoever reads the log is not to find another form at its end.
                (LogFormat::Json, Err(error)) => {
                    error!("{error}");
                    return Ok(error.exit_code());
                }
                (_, result) => result,
            },
        }?;
        Ok(0)
    }
}

impl DaemonArgs {
    fn run(self) -> Result<(), Error> {
        let log = Log::init(self.log_level, self.log_format);
        // Before another process is started, which is not to have it.
        let inherited = self.fd.map(Transport::inherit).transpose()?;
        let (opener, confinement) = match self.sandbox {
            Sandbox::On => self.confine().map(|(opener, confinement)| (opener, Some(confinement)))?,
            Sandbox::Off => (None, None),
        };
        let vmm = self.qmp.is_some().then(ToldProcess::default);
        let admission = Arc::new(Admission::new(self.allow_unsafe_interrupts, opener, vmm.clone()));
        // From here on a signal ends the daemon in order, and removes its socket.
        let stop = Stop::on_signals()?;
        let bridge = Arc::new(self.bridge(&admission)?);
        if let Some(count) = self.source_rate_limit {
            bridge.limit_rate(RateLimit::per_second(count));
        }
        let transport = match (&self.socket_path, inherited) {
            (Some(path), _) => Transport::bind(path)?,
            (None, Some(transport)) => transport,
            (None, None) => return Ok(()),
        };
        let inquirer = match (self.inquiry(&transport), vmm) {
            (Some(inquiry), Some(vmm)) => Some(Inquirer::start(inquiry, vmm, &bridge, admission.clone())?),
            _ => None,
        };
        let about = About { confinement, vmm: inquirer.as_ref().map(Inquirer::findings) };
        let control = self.control_socket.as_deref();
        let _control =
            control.map(|path| Control::start(path, bridge.clone(), log, admission, about)).transpose()?;
        Ok(serve(&bridge, transport, &stop)?)
    }

    /// What is to be asked of QEMU.
    fn inquiry(&self, transport: &Transport) -> Option<Inquiry> {
        let everything = self.devices.is_empty();
        Some(Inquiry { qmp: self.qmp.clone()?, socket: transport.path(), everything })
    }

    /// Gives up what is not needed from here on. Returns what opens the rest, if there may be anything to open.
    fn confine(&self) -> Result<(Option<Opener>, Confinement), Error> {
        let mut needs = Needs::default();
        self.socket_path.iter().chain(&self.control_socket).for_each(|path| needs.socket(path));
        // Clients of the control socket may attach functions.
        needs.character_devices = self.control_socket.is_some();
        let mut needs_opener = self.control_socket.is_some() || self.qmp.is_some();
        for spec in &self.devices {
            let Model::Host(_, source) = &spec.model else { continue };
            needs_opener = true;
            match source {
                Some(DeviceSource::Socket(path)) => needs.socket(path),
                Some(DeviceSource::CharacterDevice(path)) => {
                    needs.socket(path);
                    needs.character_devices = true;
                }
                Some(DeviceSource::Process(_) | DeviceSource::PidFile(_)) | None => {}
            }
        }
        let opener = needs_opener.then(Opener::start).transpose().map_err(Error::Opener)?;
        let confinement = sandbox::confine(&needs)?;
        info!("confined: {confinement}");
        for missing in confinement.missing() {
            warn!("this kernel has no {missing}: the daemon is confined without it");
        }
        Ok((opener, confinement))
    }

    fn bridge(&self, admission: &Admission) -> Result<Bridge, Error> {
        let mut ids = BTreeSet::new();
        let mut names = BTreeSet::new();
        let mut functions = Vec::new();
        for (index, spec) in self.devices.iter().enumerate() {
            let id = match spec.id {
                Some(id) => id,
                None => u16::try_from(index).map_err(|_| Error::NoId { name: spec.model.to_string() })?,
            };
            if !ids.insert(id) {
                return Err(Error::SameId { id: FunctionId(id) });
            }
            if let Model::Host(address, _) = &spec.model
                && !names.insert(*address)
            {
                return Err(Error::SameDevice { name: address.to_string() });
            }
            functions.push(admission.open(spec, FunctionId(id))?);
        }
        let quota = Quota { guest: self.max_sources, function: self.max_sources_per_function };
        let bridge = Bridge::new(functions, quota).map_err(|error| match error {
            BridgeError::SameId(duplicate) => Error::SameId { id: duplicate.0 },
            BridgeError::Deliveries(error) => Error::Serve(error),
        })?;
        allow_files_for(bridge.device().most_sources(None))?;
        Ok(bridge)
    }
}

fn print_capabilities() -> io::Result<()> {
    let capabilities = serde_json::json!({ "type": "irq", "features": [] });
    io::Write::write_all(&mut io::stdout(), format!("{capabilities:#}\n").as_bytes())
}
