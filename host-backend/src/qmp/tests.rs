// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};
use tempfile::TempDir;

/// What QEMU 11.1 says of a machine with root ports, shortened to what matters; firmware has numbered the first port's bus.
fn pci() -> Value {
    json!([{"bus": 0, "devices": [
        {"bus": 0, "slot": 0, "function": 0, "qdev_id": ""},
        {"bus": 0, "slot": 5, "function": 0, "qdev_id": "rp1",
            "pci_bridge": {"bus": {"number": 0, "secondary": 1, "subordinate": 1},
                "devices": [{"bus": 1, "slot": 0, "function": 0, "qdev_id": ""}]}},
        {"bus": 0, "slot": 7, "function": 2, "qdev_id": "rp2",
            "pci_bridge": {"bus": {"number": 0, "secondary": 0, "subordinate": 0}}},
    ]}])
}

/// Answers as QEMU does for a function on the root bus, one behind each port, and devices that are none.
fn answer(request: &Value) -> Value {
    let (path, property) = (request["arguments"]["path"].as_str(), request["arguments"]["property"].as_str());
    let none = json!({"error": {"class": "GenericError", "desc": "Property 'x' not found"}});
    let value = match (
        request["execute"].as_str().unwrap(),
        path.unwrap_or_default(),
        property.unwrap_or_default(),
    ) {
        ("qmp_capabilities", ..) => json!({}),
        ("query-pci", ..) => pci(),
        ("qom-list", "/machine/peripheral", _) => json!([
            {"name": "type", "type": "string"},
            {"name": "wifi", "type": "child<vfio-pci>"},
            {"name": "rp1", "type": "child<pcie-root-port>"},
            {"name": "irq", "type": "child<vhost-user-test-device-pci>"},
            {"name": "fs", "type": "child<vhost-user-fs-pci>"},
        ]),
        ("qom-list", ..) => json!([
            {"name": "device[0]", "type": "child<vfio-pci-nohotplug>"},
            {"name": "device[1]", "type": "child<vfio-pci>"},
            {"name": "device[2]", "type": "child<edu>"},
            {"name": "device[3]", "type": "child<vfio-pci>"},
        ]),
        (_, "/machine/peripheral/wifi", "host") => json!("0000:02:00.0"),
        (_, "/machine/peripheral/wifi", "addr") => json!(0x30),
        (_, "/machine/peripheral/wifi", "parent_bus") => json!("/machine/q35/pcie.0"),
        (_, "/machine/peripheral/irq", "virtio-id") => json!(37),
        (_, "/machine/peripheral/irq", "chardev") => json!("irq-socket"),
        (_, "/chardevs/irq-socket", "addr") => json!({"type": "unix", "path": "/run/vm/irq.sock"}),
        (_, "/machine/peripheral/irq", "addr") => json!(0x38),
        (_, "/machine/peripheral/irq", "parent_bus") => json!("/machine/q35/pcie.0"),
        (_, "/machine/peripheral/rp1", "addr") => json!(0x28),
        (_, "/machine/peripheral/rp2", "addr") => json!(0x3a),
        (_, "/machine/peripheral/rp1" | "/machine/peripheral/rp2", "parent_bus") => {
            json!("/machine/q35/pcie.0")
        }
        (_, "/machine/peripheral-anon/device[0]", "host") => json!("0000:03:00.1"),
        (_, "/machine/peripheral-anon/device[0]", "addr") => json!(0x01),
        (_, "/machine/peripheral-anon/device[0]", "parent_bus") => json!("/machine/peripheral/rp1/rp1"),
        (_, "/machine/peripheral-anon/device[1]", "host") => json!("0000:04:00.0"),
        (_, "/machine/peripheral-anon/device[1]", "addr") => json!(0),
        (_, "/machine/peripheral-anon/device[1]", "parent_bus") => json!("/machine/peripheral/rp2/rp2"),
        (_, "/machine/peripheral-anon/device[3]", "host") => json!(""),
        _ => return none,
    };
    json!({ "return": value })
}

/// Something that listens as QEMU does, for one client.
pub(crate) fn served(serve: impl FnOnce(UnixStream) + Send + 'static) -> (TempDir, PathBuf, JoinHandle<()>) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("qmp.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || serve(listener.accept().unwrap().0));
    (directory, path, server)
}

fn asked(serve: impl FnOnce(UnixStream) + Send + 'static) -> Result<Vmm, QmpError> {
    let (_directory, path, server) = served(serve);
    let result = ask(&path, None);
    server.join().unwrap();
    result
}

const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n";

pub(crate) fn qemu(mut stream: UnixStream) {
    stream.write_all(GREETING).unwrap();
    let requests = BufReader::new(stream.try_clone().unwrap());
    for request in requests.lines() {
        let request: Value = serde_json::from_str(&request.unwrap()).unwrap();
        let event = json!({"event": "RTC_CHANGE", "data": {}});
        stream.write_all(format!("{event}\r\n{}\r\n", answer(&request)).as_bytes()).unwrap();
    }
}

#[test]
fn assigned_functions_are_found_where_the_guest_sees_them() {
    let vmm = asked(qemu).unwrap();
    let specs: Vec<_> = vmm.functions.iter().map(|function| function.spec(7)).collect();
    assert_eq!(
        specs,
        [
            "0000:02:00.0,guest=0000:00:06.0,vfio=pid:7",
            "0000:03:00.1,guest=0000:01:00.1,vfio=pid:7",
            "0000:04:00.0,vfio=pid:7",
        ]
    );
    assert_eq!(vmm.pid, i32::try_from(std::process::id()).unwrap());
}

#[test]
fn the_device_of_a_socket_is_known_by_it() {
    let vmm = asked(qemu).unwrap();
    let found = |socket: &str| vmm.device_of(Some(Path::new(socket))).map(|device| device.guest);
    let place = PciAddress { segment: 0, bus: 0, devfn: 0x38 };
    assert_eq!(found("/run/vm/irq.sock"), Some(Some(place)));
    assert_eq!(found("/srv/jail/run/irq.sock"), Some(Some(place)), "QEMU has another root");
    assert_eq!(found("/run/vm/other.sock"), None);
    assert_eq!(vmm.device_of(None).unwrap().guest, Some(place));
    assert_eq!(vmm.devices.len(), 1);

    // Two sockets of one name that are both there.
    let directory = TempDir::new().unwrap();
    let [ours, theirs] = ["a", "b"].map(|name| {
        std::fs::create_dir(directory.path().join(name)).unwrap();
        let path = directory.path().join(name).join("irq.sock");
        drop(UnixListener::bind(&path).unwrap());
        path
    });
    let devices = vec![Shown { socket: Some(theirs.clone()), guest: None }];
    let vmm = Vmm { pid: 1, functions: Vec::new(), devices };
    assert!(vmm.device_of(Some(&ours)).is_none());
    assert!(vmm.device_of(Some(&theirs)).is_some());
}

#[test]
fn a_server_that_lies_or_closes_is_told_apart_from_qemu() {
    let error = asked(|mut stream| stream.write_all(b"{\"hello\":\"\\u001b[2J\"}\n").unwrap()).unwrap_err();
    assert!(matches!(&error, QmpError::Protocol { what, .. } if !what.contains('\u{1b}')), "{error}");
    let error = asked(|mut stream| stream.write_all(b"SSH-2.0\r\n").unwrap()).unwrap_err();
    assert!(matches!(error, QmpError::Protocol { .. }), "{error}");
    let error = asked(drop).unwrap_err();
    assert!(matches!(error, QmpError::Connection { .. }), "{error}");
    let error = asked(|mut stream| {
        stream.write_all(GREETING).unwrap();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
        stream.write_all(b"{\"return\": {}}\n").unwrap();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
        stream.write_all(b"{\"error\": {\"desc\": \"no\\u0007\"}}\n").unwrap();
    });
    assert!(error.unwrap_err().to_string().ends_with(r"refuses query-pci: no\u{7}"));
}

#[test]
fn a_line_without_an_end_is_given_up() {
    let error = asked(|mut stream| {
        let chunk = [b'x'; 1 << 16];
        // Until the other side has enough.
        while stream.write_all(&chunk).is_ok() {}
    });
    assert!(error.unwrap_err().to_string().contains("a line does not end"));
}

#[test]
fn a_server_that_stalls_is_not_waited_for_long() {
    let (_directory, path, server) = served(|mut stream| {
        stream.write_all(GREETING).unwrap();
        // Reads the request and says nothing until the client leaves.
        let mut requests = BufReader::new(stream);
        while requests.read_line(&mut String::new()).unwrap() > 0 {}
    });
    let mut qmp = Qmp::open(&path, Duration::from_secs(1), None).unwrap();
    let error = qmp.greet().unwrap_err();
    assert!(
        matches!(&error, QmpError::Connection { source, .. } if source.kind() == io::ErrorKind::TimedOut),
        "{error}"
    );
    drop(qmp);
    server.join().unwrap();
}

#[test]
fn a_server_that_never_stops_talking_is_not_listened_to_for_ever() {
    let (_directory, path, server) = served(|mut stream| {
        stream.write_all(GREETING).unwrap();
        let events = b"{\"event\": \"STOP\"}\n".repeat(1000);
        while stream.write_all(&events).is_ok() {}
    });
    let mut qmp = Qmp::open(&path, Duration::from_secs(1), None).unwrap();
    let error = qmp.greet().unwrap_err();
    assert!(error.to_string().contains("timed out"), "{error}");
    drop(qmp);
    server.join().unwrap();
}

#[test]
fn a_server_that_takes_nobody_is_not_waited_for() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("qmp.sock");
    let address = SocketAddrUnix::new(&path).unwrap();
    let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    // The one whom the queue has room for.
    let _first = UnixStream::connect(&path).unwrap();
    let error = ask(&path, None).unwrap_err();
    assert!(error.to_string().contains("QMP serves one client at a time, end the other one"), "{error}");
}

#[test]
fn asking_ends_when_it_is_told_to() {
    let (_directory, path, server) = served(|stream| {
        // Says nothing until the client leaves.
        assert_eq!(BufReader::new(stream).read_line(&mut String::new()).unwrap(), 0);
    });
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let start = Instant::now();
    let error = ask(&path, Some(ours.as_fd())).unwrap_err();
    assert!(matches!(error, QmpError::Connection { .. }), "{error}");
    assert!(start.elapsed() < PATIENCE / 2);
    server.join().unwrap();
}

#[test]
fn buses_that_are_children_of_each_other_are_not_followed_for_ever() {
    let vmm = asked(|mut stream| {
        stream.write_all(GREETING).unwrap();
        for request in BufReader::new(stream.try_clone().unwrap()).lines() {
            let request: Value = serde_json::from_str(&request.unwrap()).unwrap();
            let value =
                match (request["execute"].as_str().unwrap(), request["arguments"]["property"].as_str()) {
                    ("qom-list", _) => json!([{"name": "x", "type": "child<vfio-pci>"}]),
                    (_, Some("host")) => json!("0000:02:00.0"),
                    (_, Some("addr")) => json!(8),
                    (_, Some("parent_bus")) => json!("/x/x"),
                    _ => json!([]),
                };
            stream.write_all(format!("{}\n", json!({ "return": value })).as_bytes()).unwrap();
        }
    });
    assert_eq!(vmm.unwrap().functions.iter().filter(|function| function.guest.is_none()).count(), 2);
}
