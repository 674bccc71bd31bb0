// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A front end and a device that share no code with this project, written from the specification, meet the daemon, the
//! reference driver and the checker.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::num::NonZeroU16;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use virtio_irq_conform::{Action, PATIENCE, Provoke, ProvokeError, Verdict, check};
use virtio_irq_proto::{Allocate, Delivery, Event, FunctionId, IrqType, Layout, SourceId, VectorRange};
use virtio_irq_tests::Daemon;
use virtio_irq_userspace::{Driver, DriverError, Options};

const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/interop/first_contact.py");
const DEVICE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/interop/device.py");
const LIAR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/interop/liar.py");
const ANNEX: &str = include_str!("../../../spec/annex-vhost-user.md");

/// The line after which the client waits for an interrupt of its second source.
const WAITS: &str = "7. The function writes the second message";

/// What the client prints when it meets the daemon.
fn session() -> String {
    let daemon = Daemon::start(&["--device", "sim:wcn6855,guest=00:06.0", "--device", "sim:igb"]);
    // Its eventfds and memory end with it, so a client that hangs ends when the daemon does.
    let mut client = Command::new("timeout")
        .args(["20", "python3"])
        .arg(Path::new(CLIENT))
        .arg(daemon.socket())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("timeout(1) can be started");
    let output = client.stdout.take().expect("standard output is a pipe");
    let mut seen = String::new();
    for line in BufReader::new(output).lines() {
        let line = line.unwrap();
        seen += &line;
        seen.push('\n');
        if line == WAITS {
            daemon.triggers().fire(SourceId(1));
        }
    }
    let status = client.wait().unwrap();
    assert!(status.success(), "the client needs python3 (3.10 or later) and ends with {status}:\n{seen}");
    seen
}

#[test]
fn a_client_written_from_the_text_works_and_the_session_in_the_text_is_what_happens() {
    let (_, rest) = ANNEX.split_once("\n```text\n").expect("the annex has a session");
    let (recorded, _) = rest.split_once("\n```\n").expect("the session ends");
    let happened = session();
    assert_eq!(
        recorded,
        happened.trim(),
        "to record it anew, replace the block in the annex by:\n{happened}"
    );
}

/// Killed when dropped.
struct Python(Child);

impl Drop for Python {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The device in Python, at a socket of its own.
struct Foreign {
    _process: Python,
    directory: TempDir,
}

impl Foreign {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("python3");
        command.arg(DEVICE).arg(directory.path().join("irq.sock"));
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("python3 is there");
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "listening\n");
        Self { _process: Python(child), directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("irq.sock")
    }
}

impl Provoke for Foreign {
    fn provoke(&self, action: Action) -> Result<(), ProvokeError> {
        let failed = |error: io::Error| ProvokeError::Failed { action, why: error.to_string() };
        let mut host = UnixStream::connect(self.directory.path().join("irq.sock.host")).map_err(failed)?;
        host.write_all(format!("{action}\n").as_bytes()).map_err(failed)?;
        let mut done = String::new();
        host.read_to_string(&mut done).map_err(failed)?;
        assert_eq!(done, "done\n", "{action}");
        Ok(())
    }
}

#[test]
fn a_device_written_from_the_text_serves_our_driver() {
    let device = Foreign::start();
    let options = Options { timeout: PATIENCE, ..Options::default() };
    let mut driver = Driver::connect(&device.socket(), options).unwrap();
    let ids: Vec<_> = driver.functions().unwrap().iter().map(|function| function.id.0).collect();
    assert_eq!(ids, [3, 4, 5, 6, 9, 10, 11, 12]);
    let vectors = |irq_type, first, count| VectorRange::of_messages(irq_type, first, count).unwrap();
    let messages = driver.messages(FunctionId(9), vectors(IrqType::Msix, 4, 2)).unwrap();
    let pairs: Vec<_> = messages.iter().map(|message| (message.address, message.data)).collect();
    assert_eq!(pairs, [(0xfee2_4080, 0), (0xfee2_40a0, 0)]);
    let block = driver.block(FunctionId(3), vectors(IrqType::Msi, 0, 32)).unwrap();
    assert_eq!((block.address, block.data), (0xfee0_c000, 0));
    let wanted = Allocate {
        function: FunctionId(9),
        irq_type: IrqType::Msix,
        layout: Layout::Any,
        least: NonZeroU16::MIN,
        most: NonZeroU16::MIN,
        first: 7,
        delivery: Delivery::Event,
    };
    let sources: Vec<_> = driver.allocate(wanted).unwrap().iter().map(|source| source.vector).collect();
    assert_eq!(sources, [7]);
    device.provoke(Action::Raise { function: 9, vector: 7 }).unwrap();
    let events = driver.events(PATIENCE).unwrap();
    assert_eq!(events, [Event::Interrupt { function: FunctionId(9), source: SourceId(0) }]);
    driver.reset().unwrap();
    assert_eq!(driver.functions().unwrap().len(), 8);
}

#[test]
fn a_device_written_from_the_text_passes_the_checker() {
    let device = Foreign::start();
    let report = check(&device.socket(), PATIENCE, &device);
    assert!(report.passed(), "{}{}", report.table(false), report.details());
    let held = report.findings.iter().filter(|found| found.verdict == Verdict::Held).count();
    assert!(held >= 67, "{held}: {}", report.table(true));
}

/// The device in Python that lies.
struct Liar {
    _process: Python,
    input: ChildStdin,
    output: BufReader<ChildStderr>,
    directory: TempDir,
}

impl Liar {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("python3");
        command.arg(LIAR).arg("irq.sock").current_dir(directory.path());
        let mut child =
            command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python3 is there");
        let (input, output) = (child.stdin.take().unwrap(), child.stderr.take().unwrap());
        let mut liar = Self { _process: Python(child), input, output: BufReader::new(output), directory };
        assert_eq!(liar.line(), "listening");
        liar
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn tell(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        self.line()
    }

    /// A driver that waits for at most `timeout` allocates sources and looks for their events.
    fn is_used(&self, timeout: Duration) -> Result<usize, DriverError> {
        let options = Options { timeout, ..Options::default() };
        let mut driver = Driver::connect(&self.directory.path().join("irq.sock"), options)?;
        driver.functions()?;
        let wanted = Allocate {
            function: FunctionId(3),
            irq_type: IrqType::Msi,
            layout: Layout::Contiguous,
            least: NonZeroU16::MIN,
            most: NonZeroU16::new(8).unwrap(),
            first: 2,
            delivery: Delivery::Event,
        };
        let given = driver.allocate(wanted)?.len();
        driver.events(Duration::ZERO)?;
        Ok(given)
    }
}

#[test]
fn our_driver_outlives_every_lie_of_a_device() {
    let mut liar = Liar::start();
    let lies = liar.tell("lies");
    assert!(lies.split(' ').count() >= 50, "{lies}");
    for lie in lies.split(' ') {
        let mut told = "told 0".to_owned();
        // The device may be too slow to come to it.
        for _ in 0..20 {
            liar.tell(&format!("lie {lie}"));
            // An error or not: it returns, and does not panic. It does not wait for long, since many an answer never comes.
            let _: Result<usize, DriverError> = liar.is_used(Duration::from_millis(300));
            told = liar.tell("lie none");
            if told != "told 0" {
                break;
            }
        }
        assert_ne!(told, "told 0", "{lie} was not told");
        assert_eq!(liar.is_used(PATIENCE).unwrap(), 8, "after {lie}");
    }
}
