// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask demo --simulated`: the flow of the demonstration without a machine under it.
//!
//! The daemon and the driver are the real ones, two processes with rings in shared memory between them. Simulated is
//! what lies behind the daemon: the function, and the messages that a host would have programmed. So no interrupt is
//! raised here.

use crate::table;
use std::num::NonZeroU16;
use std::process::ExitCode;
use std::time::Instant;
use virtio_irq_proto::{Function, FunctionId, IrqType, PciAddress, PciIds, Status, VectorRange};
use virtio_irq_tests::Daemon;
use virtio_irq_userspace::{Block, Driver, DriverError, Target};

/// What the daemon is started with: a Wi-Fi card whose guest address is known, and an Ethernet controller.
const DEVICES: [&str; 4] = ["--device", "sim:wcn6855,guest=00:06.0", "--device", "sim:igb"];

/// The guest's own view of the card.
const CARD: Target = Target {
    address: PciAddress { segment: 0, bus: 0, devfn: 6 << 3 },
    ids: PciIds {
        vendor: 0x17cb,
        device: 0x1103,
        subsystem_vendor: 0x17cb,
        subsystem_device: 0x0108,
        class_revision: 0x0280_0001,
    },
    ids_are_unique: true,
};

/// One line of the table.
struct Row {
    situation: &'static str,
    function: String,
    vectors: String,
    told: String,
    /// What is wrong with it, if anything is.
    wrong: Option<String>,
}

pub(crate) fn run() -> ExitCode {
    println!("SIMULATED: real daemon, real driver, real rings between them; function and host are made up.");
    println!("`cargo xtask demo` shows real interrupts, with a real kernel, VFIO and an IOMMU.\n");
    println!("1. Build and start the daemon");
    let daemon = Daemon::start(&DEVICES);
    let start = Instant::now();
    match show(daemon) {
        Ok(rows) => conclude(&rows, start),
        Err(error) => {
            eprintln!("cargo xtask demo --simulated: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show(daemon: Daemon) -> Result<Vec<Row>, DriverError> {
    println!("   vhost-device-irq --socket-path {} {}", daemon.socket().display(), DEVICES.join(" "));

    println!("2. A guest connects and looks for its Wi-Fi card, 17cb:1103 at 00:06.0");
    let mut driver = daemon.connect()?;
    for function in driver.functions()? {
        println!("   {}", describe(&function));
    }
    let card = driver.find(CARD)?;
    println!("   the card is function {}", card.id);

    println!("3. It asks for messages");
    let base = driver.block(card.id, vectors(0, 1))?;
    let mut rows = vec![
        block("one vector", &mut driver, &card, vectors(0, 1), base),
        block("all 32, as ath11k needs them", &mut driver, &card, vectors(0, 32), base),
        block("those of the data path", &mut driver, &card, vectors(14, 18), base),
        refusal("a vector that is not there", &mut driver, card.id, 32, Status::NoVector),
        refusal("a function that is not the guest's", &mut driver, FunctionId(9), 0, Status::NoFunction),
    ];

    println!("4. The guest's driver is unloaded and loaded again");
    driver.reset()?;
    rows.push(block("after a driver reset", &mut driver, &card, vectors(0, 32), base));

    println!("5. The virtual machine ends, another one takes its place");
    drop(driver);
    let mut driver = daemon.connect()?;
    let card = driver.find(CARD)?;
    rows.push(block("in the next machine", &mut driver, &card, vectors(0, 32), base));
    drop(driver);

    println!("6. The daemon is told to end");
    let socket = daemon.socket().to_owned();
    let (status, log) = daemon.terminate();
    let left = (!status.success()).then(|| format!("{status}: {log}"));
    let wrong = left.or_else(|| socket.exists().then(|| "it left its socket behind".to_owned()));
    println!("   {}", wrong.as_deref().unwrap_or("exit code 0, the socket is gone"));
    rows.push(Row {
        situation: "the daemon on SIGTERM",
        function: "-".to_owned(),
        vectors: "-".to_owned(),
        told: status.to_string(),
        wrong,
    });
    Ok(rows)
}

fn describe(function: &Function) -> String {
    let address = function
        .guest_address
        .map_or("an address that the host was not told".to_owned(), |address| address.to_string());
    format!(
        "function {}: {:04x}:{:04x} at {address}, {} MSI and {} MSI-X vectors",
        function.id, function.ids.vendor, function.ids.device, function.msi_count, function.msix_count
    )
}

fn vectors(first: u16, count: u16) -> VectorRange {
    VectorRange { irq_type: IrqType::Msi, first, count: NonZeroU16::new(count).unwrap_or(NonZeroU16::MIN) }
}

/// Asks for messages, which have to form the part of the card's block that begins with `base`: nothing has moved it.
fn block(
    situation: &'static str,
    driver: &mut Driver,
    function: &Function,
    range: VectorRange,
    base: Block,
) -> Row {
    let (first, last) = (range.first, range.end().saturating_sub(1));
    let one = u32::from(first) == last;
    let (told, wrong) = match driver.block(function.id, range) {
        Ok(block) => {
            let end = u64::from(block.data) + u64::from(last) - u64::from(first);
            let data = if one { format!("{end:04x}") } else { format!("{:04x}-{end:04x}", block.data) };
            let fits = block.address == base.address && block.data == base.data | u32::from(first);
            let wrong = (!fits).then(|| format!("vector 0 has {:08x}/{:04x}", base.address, base.data));
            (format!("{:08x}/{data}", block.address), wrong)
        }
        Err(error) => ("-".to_owned(), Some(error.to_string())),
    };
    let vectors = if one { format!("MSI {first}") } else { format!("MSI {first}-{last}") };
    let address = function.guest_address.map_or(function.id.to_string(), |address| address.to_string());
    Row { situation, function: address, vectors, told, wrong }
}

/// Asks for a message that must be refused.
fn refusal(
    situation: &'static str,
    driver: &mut Driver,
    function: FunctionId,
    vector: u16,
    expected: Status,
) -> Row {
    let (told, wrong) = match driver.messages(function, vectors(vector, 1)) {
        Err(error) if error.status() == Some(expected) => (format!("refused: {error}"), None),
        Err(error) => ("-".to_owned(), Some(error.to_string())),
        Ok(messages) => (format!("{messages:x?}"), Some("it was not refused".to_owned())),
    };
    Row { situation, function: format!("id {function}"), vectors: format!("MSI {vector}"), told, wrong }
}

fn conclude(rows: &[Row], start: Instant) -> ExitCode {
    let mut table = table::new(&["", "function", "vectors", "told (simulated)", "outcome"]);
    for row in rows {
        let outcome = row.wrong.as_deref().unwrap_or("as it should be");
        table.add_row([row.situation, &row.function, &row.vectors, &row.told, outcome]);
    }
    println!("\n{table}\n");
    let wrong = rows.iter().filter(|row| row.wrong.is_some()).count();
    let seconds = start.elapsed().as_secs_f32();
    println!(
        "SIMULATED: {} of {} as they should be, {seconds:.2} s after the build",
        rows.len() - wrong,
        rows.len()
    );
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
