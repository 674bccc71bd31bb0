// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The reference driver against the daemon, both as they are used.

use std::num::NonZeroU16;
use std::time::{Duration, Instant};
use virtio_irq_proto::{FunctionId, IrqType, Message, PciAddress, PciIds, Status, VectorRange};
use virtio_irq_tests::{Daemon, PATIENCE};
use virtio_irq_userspace::{Block, Driver, DriverError, FindError, Options, SessionError, Target};

fn range(irq_type: IrqType, first: u16, count: u16) -> VectorRange {
    VectorRange { irq_type, first, count: NonZeroU16::new(count).unwrap() }
}

const WCN6855: PciIds = PciIds {
    vendor: 0x17cb,
    device: 0x1103,
    subsystem_vendor: 0x17cb,
    subsystem_device: 0x0108,
    class_revision: 0x0280_0001,
};

#[test]
fn functions_on_several_pages_are_listed_and_found() {
    let devices: Vec<_> =
        (0..19).map(|n| format!("sim:wcn6855,guest=00:{:02x}.0,id={}", n + 4, 3 * n)).collect();
    let arguments: Vec<_> = devices.iter().flat_map(|device| ["--device", device]).collect();
    let daemon = Daemon::start(&arguments);
    let mut driver = daemon.connect().unwrap();
    let functions = driver.functions().unwrap();
    let ids: Vec<_> = functions.iter().map(|function| function.id.0).collect();
    assert_eq!(ids, (0..19).map(|n| 3 * n).collect::<Vec<_>>());

    let target = |device: u8, ids| Target {
        address: PciAddress { segment: 0, bus: 0, devfn: device << 3 },
        ids,
        ids_are_unique: true,
    };
    assert_eq!(driver.find(target(4 + 17, WCN6855)).unwrap().id, FunctionId(51));
    let nowhere = driver.find(target(3, WCN6855));
    assert!(matches!(nowhere, Err(DriverError::Find(FindError::NoMatch))), "{nowhere:?}");
    let other = driver.find(target(5, PciIds { device: 0x1107, ..WCN6855 }));
    assert!(matches!(other, Err(DriverError::Find(FindError::OtherModel(FunctionId(3))))), "{other:?}");
}

#[test]
fn messages_are_those_of_the_host() {
    let daemon = Daemon::start(&["--device", "sim:wcn6855", "--device", "sim:vectors=2048,type=msix"]);
    let mut driver = daemon.connect().unwrap();

    let messages = driver.messages(FunctionId(0), range(IrqType::Msi, 29, 3)).unwrap();
    let pairs: Vec<_> = messages.iter().map(|message| (message.address, message.data)).collect();
    assert_eq!(pairs, [(0xfee0_0578, 29), (0xfee0_0578, 30), (0xfee0_0578, 31)]);
    assert_eq!(
        driver.messages(FunctionId(0), range(IrqType::Msi, 29, 3)).unwrap(),
        messages,
        "nothing moved"
    );

    let block = driver.block(FunctionId(0), range(IrqType::Msi, 14, 18)).unwrap();
    assert_eq!((block.address, block.data), (0xfee0_0578, 14));

    let all = driver.messages(FunctionId(1), range(IrqType::Msix, 0, 2048)).unwrap();
    assert_eq!(all.len(), 2048);
    let part = driver.messages(FunctionId(1), range(IrqType::Msix, 2000, 48)).unwrap();
    assert_eq!(part, all[2000..]);
    let scattered = driver.block(FunctionId(1), range(IrqType::Msix, 7, 2));
    assert!(matches!(scattered, Err(DriverError::NotContiguous(_))), "{scattered:?}");
}

#[test]
fn refusals_carry_their_status_and_the_next_request_works() {
    let daemon = Daemon::start(&["--device", "sim:igb"]);
    let mut driver = daemon.connect().unwrap();
    let refused =
        |driver: &mut Driver, id, range| driver.messages(FunctionId(id), range).unwrap_err().status();
    for (id, range, status) in [
        (1, range(IrqType::Msix, 0, 1), Status::NoFunction),
        (0, range(IrqType::Msix, 9, 2), Status::NoVector),
        (0, range(IrqType::Msix, u16::MAX, 1), Status::NoVector),
        (0, range(IrqType::Msi, 1, 1), Status::NoVector),
        (0, range(IrqType::Msix, 0, 2048), Status::NoVector),
    ] {
        assert_eq!(refused(&mut driver, id, range), Some(status), "function {id}, {range:?}");
        assert_eq!(
            driver.messages(FunctionId(0), super::reference::range(IrqType::Msix, 3, 7)).unwrap().len(),
            7
        );
    }
}

#[test]
fn every_kind_of_ring_works_beyond_the_wrap_of_its_index() {
    let daemon = Daemon::start(&["--device", "sim:edu"]);
    for (indirect, event_idx) in [(false, false), (false, true), (true, false), (true, true)] {
        let options = Options { timeout: PATIENCE, indirect, event_idx };
        let mut driver = Driver::connect(daemon.socket(), options).unwrap();
        let mut pages = None;
        // Only one combination goes all the way round: the index has 16 bits.
        let rounds = if indirect && event_idx { 66_000 } else { 500 };
        for round in 0..rounds {
            let block = driver.block(FunctionId(0), range(IrqType::Msi, 0, 1));
            assert_eq!(block.unwrap().data, 0, "round {round}, indirect {indirect}, event index {event_idx}");
            let in_use = driver.memory().pages_in_use();
            assert_eq!(*pages.get_or_insert(in_use), in_use, "every buffer is taken back");
        }
    }
}

#[test]
fn after_a_reset_the_device_works_and_every_buffer_is_free() {
    let daemon = Daemon::start(&["--device", "sim:wcn7850"]);
    let mut driver = daemon.connect().unwrap();
    let pages = driver.memory().pages_in_use();
    for _ in 0..20 {
        driver.reset().unwrap();
        assert_eq!(driver.memory().pages_in_use(), pages);
        let Block { address, data, .. } = driver.block(FunctionId(0), range(IrqType::Msi, 3, 4)).unwrap();
        assert_eq!((address, data), (0xfee0_0578, 3));
    }
}

#[test]
fn frontends_are_served_one_after_another_and_leave_nothing_behind() {
    let daemon = Daemon::start(&["--device", "sim:wcn6855"]);
    let ask = |driver: &mut Driver| driver.messages(FunctionId(0), range(IrqType::Msi, 1, 2)).unwrap();
    let pairs = |messages: &[Message]| messages.iter().map(|message| message.data).collect::<Vec<_>>();
    let mut first = daemon.connect().unwrap();
    assert_eq!(pairs(&ask(&mut first)), [1, 2]);
    let vitals = daemon.vitals();
    drop(first);
    for _ in 0..30 {
        let mut driver = daemon.connect().unwrap();
        assert_eq!(pairs(&ask(&mut driver)), [1, 2]);
        daemon.comes_back_to(vitals);
    }
}

#[test]
fn a_second_frontend_waits_for_its_turn_and_not_for_ever() {
    let daemon = Daemon::start(&["--device", "sim:edu"]);
    let first = daemon.connect().unwrap();
    let impatient = Options { timeout: Duration::from_millis(50), ..Options::default() };
    let second = Driver::connect(daemon.socket(), impatient).unwrap_err();
    assert!(matches!(second, DriverError::Session(SessionError::NoAnswer { .. })), "{second:?}");
    drop(first);
    daemon.connect().unwrap().functions().unwrap();
}

#[test]
fn a_daemon_that_dies_is_noticed_at_once() {
    let daemon = Daemon::start(&["--device", "sim:edu"]);
    let mut driver = daemon.connect().unwrap();
    driver.functions().unwrap();
    drop(daemon);
    let start = Instant::now();
    let lost = driver.functions().unwrap_err();
    assert!(matches!(lost, DriverError::Session(SessionError::Closed)), "{lost:?}");
    let events = driver.events(PATIENCE).unwrap_err();
    assert!(matches!(events, DriverError::Session(SessionError::Closed)), "{events:?}");
    assert!(driver.reset().is_err());
    assert!(start.elapsed() < PATIENCE / 2, "no wait ran into its limit");
}

#[test]
fn nobody_at_the_socket_is_said_with_its_path() {
    let path = std::path::Path::new("/nonexistent/irq.sock");
    let error = Driver::connect(path, Options::default()).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/irq.sock"), "{error}");
}
