// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::device::{Assigned, Quota};
use crate::host::sim::SimFunction;
use crate::host::{HostFunction, sim};
use crate::qmp::tests::{qemu, served};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use virtio_irq_proto::Function;

const LONG: Duration = Duration::from_secs(20);

/// Where the double of QEMU has its first function.
const PLACE: PciAddress = PciAddress { segment: 0, bus: 0, devfn: 6 << 3 };

/// A function of the host with this name, for which the operator gave this place.
fn function(id: u16, name: &str, guest: Option<PciAddress>) -> (Assigned, Box<dyn HostFunction>) {
    let (id, ids) = (FunctionId(id), sim::KINDS[0].ids);
    let function = Function { id, guest_address: guest, ids, msi_count: 1, ..Function::default() };
    (Assigned { function, refused: false }, Box::new(SimFunction::new(name, ids, 1, 0, id.0)))
}

fn bridge(functions: Vec<(Assigned, Box<dyn HostFunction>)>) -> Arc<Bridge> {
    Arc::new(Bridge::new(functions, Quota { guest: 8, function: 8 }).unwrap())
}

fn inquirer(bridge: &Arc<Bridge>, qmp: &Path, socket: &str) -> Inquirer {
    let process = ToldProcess::default();
    let admission = Arc::new(Admission::new(false, None, Some(process.clone())));
    let everything = bridge.names().is_empty();
    let inquiry = Inquiry { qmp: qmp.to_owned(), socket: Some(socket.into()), everything };
    Inquirer::start(inquiry, process, bridge, admission).unwrap()
}

/// What is found out when `is_it` is, which it has to be before long.
#[track_caller]
fn await_answer(inquirer: &Inquirer, is_it: impl Fn(&Answer) -> bool) -> Answer {
    let deadline = Instant::now() + LONG;
    loop {
        let answer = inquirer.findings().answer();
        if is_it(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{answer:?}");
        std::thread::yield_now();
    }
}

#[test]
fn functions_are_where_qemu_says_until_it_leaves() {
    let given = PciAddress { segment: 0, bus: 9, devfn: 0 };
    let bridge = bridge(vec![
        function(3, "0000:02:00.0", None),
        function(5, "0000:03:00.1", Some(given)),
        function(7, "0000:06:00.0", None),
    ]);
    let (_directory, path, server) = served(qemu);
    let inquirer = inquirer(&bridge, &path, "/run/vm/irq.sock");
    let places = || [3, 5, 7].map(|id| bridge.device().place_of(FunctionId(id)));
    assert_eq!(inquirer.findings().answer(), Answer::default(), "nobody is asked before a frontend comes");
    bridge.attend();
    let answer = await_answer(&inquirer, |answer| answer.pid.is_some());
    assert_eq!(answer.device, Some(PciAddress { segment: 0, bus: 0, devfn: 0x38 }));
    assert_eq!(answer.pid, i32::try_from(std::process::id()).ok());
    // It hangs up when it has done what there is to do about the functions.
    server.join().unwrap();
    await_answer(&inquirer, |_| places()[0].is_some());
    assert_eq!(places(), [Some(PLACE), Some(given), None]);
    assert_eq!(bridge.names().len(), 3, "what the operator did not name is not let in");

    bridge.frontend_left();
    assert_eq!(places(), [None, Some(given), None]);
    assert_eq!(inquirer.findings().answer(), Answer::default());
}

#[test]
fn the_word_of_qemu_gives_a_guest_nothing_that_qemu_does_not_have() {
    let bridge = bridge(Vec::new());
    let (_directory, path, _server) = served(qemu);
    let inquirer = inquirer(&bridge, &path, "/run/vm/irq.sock");
    bridge.attend();
    let answer = await_answer(&inquirer, |answer| !answer.problems.is_empty());
    assert_eq!(answer.problems.len(), 3, "{answer:?}");
    let problem = &answer.problems[0];
    assert!(problem.contains("does not have 0000:02:00.0 open"), "{problem}");
    assert!(problem.ends_with("give --device 0000:02:00.0,vfio=pidfile:PATH"), "{problem}");
    assert!(bridge.names().is_empty());
}

#[test]
fn the_qemu_of_another_machine_is_not_believed() {
    let bridge = bridge(vec![function(3, "0000:02:00.0", None)]);
    let (_directory, path, _server) = served(qemu);
    let inquirer = inquirer(&bridge, &path, "/run/other/other.sock");
    bridge.attend();
    let answer = await_answer(&inquirer, |answer| !answer.problems.is_empty());
    assert!(answer.problems[0].contains("it is another virtual machine's"), "{answer:?}");
    assert_eq!((answer.pid, bridge.device().place_of(FunctionId(3))), (None, None));
}

#[test]
fn a_qemu_that_says_nothing_keeps_neither_a_frontend_nor_the_end_waiting() {
    let bridge = bridge(Vec::new());
    let (came, asked) = std::sync::mpsc::channel();
    let silent = move |stream: UnixStream| {
        came.send(()).unwrap();
        assert_eq!(BufReader::new(stream).read_line(&mut String::new()).unwrap(), 0);
    };
    let (_directory, path, server) = served(silent);
    let inquirer = inquirer(&bridge, &path, "/run/vm/irq.sock");
    bridge.attend();
    asked.recv_timeout(LONG).unwrap();
    let start = Instant::now();
    bridge.frontend_left();
    drop(inquirer);
    // QEMU may take longer to answer.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    server.join().unwrap();
}
