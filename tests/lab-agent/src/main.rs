// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Process 1 of an emulated machine: serves the runner's requests over a virtio-serial port.

#![forbid(unsafe_code)]

mod files;
mod kernel_log;
mod machine;
mod port;
mod processes;
mod registers;

use nix::sys::reboot::{RebootMode, reboot};
use port::Port;
use processes::Processes;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio_irq_lab_agent::{Answer, Failure, Message, Operation, PORT, Request};

fn main() {
    if let Err(failure) = serve() {
        eprintln!("lab agent: {failure}");
    }
    // Without its runner a machine has no purpose, and process 1 must not return.
    power(RebootMode::RB_POWER_OFF);
}

/// Serves until the runner closes the port.
fn serve() -> Result<(), Failure> {
    machine::mount_kernel_filesystems()?;
    let (port, mut requests) = Port::open(PORT)?;
    port.say(&machine::hello()?);
    kernel_log::forward(port.clone());
    let processes = Arc::new(Processes::new(port.clone()));
    while let Some(line) = requests.next().map_err(|error| failure("read the runner's requests", &error))? {
        match serde_json::from_str::<Request>(&line) {
            Ok(request) => answer(request, port.clone(), Arc::clone(&processes)),
            Err(error) => eprintln!("lab agent: not a request ({error}): {line}"),
        }
    }
    Ok(())
}

/// Serves one request on a thread of its own, because some of them wait.
fn answer(request: Request, port: Port, processes: Arc<Processes>) {
    std::thread::spawn(move || {
        let outcome = perform(request.operation, &port, &processes);
        port.say(&Message::Reply { id: request.id, outcome });
    });
}

fn perform(operation: Operation, port: &Port, processes: &Arc<Processes>) -> Result<Answer, Failure> {
    match operation {
        Operation::Read { path } => files::read(&path),
        Operation::Write { path, data } => files::write(&path, &data),
        Operation::List { path } => files::list(&path),
        Operation::Link { path } => files::link(&path),
        Operation::Load { path, offset, count } => registers::load(&path, offset, count),
        Operation::Store { path, offset, value } => registers::store(&path, offset, value),
        Operation::WriteAt { path, offset, data } => files::write_at(&path, offset, &data.0),
        Operation::Connect { path } => files::connect(&path),
        Operation::LoadModule { name, parameters } => machine::load_module(&name, &parameters),
        Operation::UnloadModule { name } => machine::unload_module(&name),
        Operation::EnterTree { tag } => machine::enter_tree(&tag),
        Operation::Spawn { name, argv } => processes.spawn(&name, &argv),
        Operation::Signal { process, signal } => processes.signal(process, signal),
        Operation::Wait { process, milliseconds } => processes.wait(process, milliseconds),
        Operation::Run { argv } => processes.run(&argv),
        Operation::Sleep { state } => machine::sleep(port, &state),
        Operation::PowerOff => power(RebootMode::RB_POWER_OFF),
        Operation::Reboot => power(RebootMode::RB_AUTOBOOT),
    }
}

/// Nothing in a machine outlives it, so there is nothing to sync or unmount.
fn power(mode: RebootMode) -> ! {
    port::LEAVING.store(true, Ordering::Relaxed);
    let Err(error) = reboot(mode);
    eprintln!("lab agent: {error}");
    loop {
        std::thread::park();
    }
}

/// A failed operation with the error number that the operating system gave.
fn failure(what: &str, error: &std::io::Error) -> Failure {
    match error.raw_os_error() {
        Some(errno) => Failure { what: what.to_owned(), errno: Some(errno) },
        None => Failure { what: format!("{what}: {error}"), errno: None },
    }
}
