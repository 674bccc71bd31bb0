// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::host::linux::Sysfs;
use crate::vfio::{DeviceSource, DeviceSupply, Host};
use rustix::net::send;
use std::thread::JoinHandle;

const FUNCTION: PciAddress = PciAddress { segment: 0, bus: 0xfe, devfn: 0xf9 };

/// An opener in a thread of its own, and confined as such.
fn opener() -> (Opener, JoinHandle<io::Result<()>>) {
    let (ours, theirs) = pair().unwrap();
    let server = std::thread::spawn(move || serve(theirs.as_fd()));
    receive::<()>(&ours).unwrap();
    (Opener(Arc::new(ours)), server)
}

fn supply(opener: &Opener, source: &DeviceSource) -> DeviceSupply {
    source.open(&Host::here().through(Some(opener.clone())), FUNCTION).unwrap()
}

#[test]
fn it_ends_when_the_daemon_is_gone() {
    let (opener, server) = opener();
    let clone = opener.clone();
    drop(opener);
    assert!(clone.config(FUNCTION).is_err());
    drop(clone);
    server.join().unwrap().unwrap();
}

#[test]
fn the_errno_of_opening_a_configuration_space_comes_through() {
    let (opener, _) = opener();
    let error = Sysfs::here().through(Some(opener)).open_config(FUNCTION).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn claims_end_as_they_do_without_an_opener() {
    let (opener, _) = opener();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.pid");
    let by_file = DeviceSource::PidFile(path.clone());
    let itself = DeviceSource::Process(std::process::id());
    let check = |source: &DeviceSource, is_not_yet| {
        let direct = source.open(&Host::here(), FUNCTION).unwrap().claim().unwrap_err();
        let error = supply(&opener, source).claim().unwrap_err();
        assert_eq!(error.to_string(), direct.to_string());
        assert_eq!(error.is_not_yet(), is_not_yet, "{error}");
    };
    check(&itself, true);
    check(&by_file, true);
    std::fs::write(&path, "x\n").unwrap();
    check(&by_file, false);
    std::fs::write(&path, std::process::id().to_string()).unwrap();
    check(&by_file, true);
}

#[test]
fn what_is_no_request_changes_nothing() {
    let (opener, _) = opener();
    send(&opener.0, b"{}", SendFlags::empty()).unwrap();
    send(&opener.0, &[0xff; 2 * 8192], SendFlags::empty()).unwrap();
    // A request without a socket for its reply.
    let request = Request::Config { function: FUNCTION.into() };
    wire::send(opener.0.as_fd(), &request, &[], SendFlags::empty()).unwrap();
    // A process without its pidfd.
    let request = Request::Process { function: FUNCTION.into(), pid: 1 };
    assert_eq!(opener.ask(&request, &[]).unwrap().0, Reply::Errno(libc::EPROTO));
    assert_eq!(opener.config(FUNCTION).unwrap_err().raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn a_path_that_is_too_long_for_a_packet_is_an_error() {
    let (opener, _) = opener();
    let error = opener.claim_by_file(FUNCTION, Path::new(&"x".repeat(10_000))).unwrap_err();
    assert!(!error.is_not_yet(), "{error}");
    assert_eq!(opener.config(FUNCTION).unwrap_err().raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn an_opener_that_ended_is_an_error_at_once() {
    let (ours, theirs) = pair().unwrap();
    drop(theirs);
    let opener = Opener(Arc::new(ours));
    let error = opener.claim_by_file(FUNCTION, Path::new("/run/vm.pid")).unwrap_err();
    assert!(error.to_string().contains("start the daemon anew"), "{error}");

    // It ends with a request in its hands.
    let (ours, theirs) = pair().unwrap();
    let opener = Opener(Arc::new(ours));
    let server = std::thread::spawn(move || {
        let request: Option<(Request, _)> = wire::receive(theirs.as_fd(), RecvFlags::empty()).unwrap();
        drop((request, theirs));
    });
    assert_eq!(opener.config(FUNCTION).unwrap_err().raw_os_error(), Some(libc::EPIPE));
    server.join().unwrap();
}

#[test]
fn one_that_takes_no_request_any_more_keeps_nobody() {
    let (ours, _stopped) = pair().unwrap();
    while send(&ours, b"{}", SendFlags::DONTWAIT).is_ok() {}
    let error = Opener(Arc::new(ours)).config(FUNCTION).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
}
