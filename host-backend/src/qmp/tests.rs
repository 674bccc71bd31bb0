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
fn served(serve: impl FnOnce(UnixStream) + Send + 'static) -> (TempDir, PathBuf, JoinHandle<()>) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("qmp.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || serve(listener.accept().unwrap().0));
    (directory, path, server)
}

fn asked(serve: impl FnOnce(UnixStream) + Send + 'static) -> Result<Vmm, QmpError> {
    let (_directory, path, server) = served(serve);
    let result = ask(&path);
    server.join().unwrap();
    result
}

const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n";

fn qemu(mut stream: UnixStream) {
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
    let mut qmp = Qmp::open(&path, Duration::from_millis(50)).unwrap();
    let error = qmp.greet().unwrap_err();
    assert!(
        matches!(&error, QmpError::Connection { source, .. } if source.kind() == io::ErrorKind::TimedOut),
        "{error}"
    );
    drop(qmp);
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
