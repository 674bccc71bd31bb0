// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the confined daemon cannot do.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test program: what fails here fails the test")]

mod common;

use common::{Daemon, program};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Resource, Signal, getrlimit, pidfd_getfd, pidfd_open, prlimit,
    setrlimit,
};
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind::PermissionDenied;
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;
use vhost_device_irq::sandbox::{Confinement, Needs, confine};

/// Set in the process that confines itself: where its sockets are to be.
const DOUBLE: &str = "VIRTIO_IRQ_SANDBOX_DOUBLE";

/// Fields of the status of every thread of a process.
fn statuses(pid: u32) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .map(|task| {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let fields = status.lines().filter_map(|line| line.split_once(":\t"));
            fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        })
        .collect()
}

#[test]
fn every_thread_of_the_daemon_is_confined() {
    let daemon = Daemon::start(&["sim:igb"]);
    let _connection = UnixStream::connect(&daemon.socket).unwrap();
    let threads = statuses(daemon.child.id());
    assert!(threads.len() > 1, "{threads:?}");
    for thread in threads {
        assert_eq!(thread["NoNewPrivs"], "1");
        assert_eq!(thread["Seccomp"], "2");
        assert_eq!(thread["Seccomp_filters"], "2");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(thread[set], "0000000000000000", "{set}");
        }
    }
    daemon.stop();
}

#[test]
fn for_debugging_it_can_be_left_out() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("irq.sock");
    let mut command = program();
    command.arg("--socket-path").arg(&socket).args(["--device", "sim:edu", "--sandbox", "off"]);
    let daemon = Daemon::spawn(command, directory, socket);
    daemon.wait_for_line("waiting for a frontend");
    for thread in statuses(daemon.child.id()) {
        assert_eq!(thread["Seccomp"], statuses(std::process::id())[0]["Seccomp"]);
    }
    daemon.stop();
}

#[test]
fn the_status_says_what_is_enforced_and_the_opener_ends_with_the_daemon() {
    let directory = TempDir::new().unwrap();
    let (socket, control) = (directory.path().join("irq.sock"), directory.path().join("irq.ctl"));
    let mut command = program();
    command.arg("--socket-path").arg(&socket).arg("--control-socket").arg(&control);
    command.args(["--device", "sim:edu"]);
    let mut daemon = Daemon::spawn(command, directory, socket);
    daemon.wait_for_line("waiting for a frontend");
    let output = program().args(["ctl", "--json", "--socket"]).arg(&control).arg("status").output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = serde_json::json!({
        "capabilities": [], "no_new_privileges": true, "landlock": true, "seccomp": true,
    });
    assert_eq!(status["status"]["daemon"]["sandbox"], expected, "{status}");

    // Clients may attach a function, so there is an opener.
    let children = format!("/proc/{0}/task/{0}/children", daemon.child.id());
    let opener: i32 = fs::read_to_string(children).unwrap().trim().parse().unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/{opener}/comm")).unwrap(), "irq-opener\n");
    let opener = pidfd_open(Pid::from_raw(opener).unwrap(), PidfdFlags::empty()).unwrap();
    daemon.signal(Signal::KILL);
    daemon.wait();
    let mut ended = [PollFd::new(&opener, PollFlags::IN)];
    let time_limit = Timespec { tv_sec: 30, tv_nsec: 0 };
    assert_eq!(poll(&mut ended, Some(&time_limit)), Ok(1), "it is still there");
}

/// The process confines itself for good, so another one does it: this program, started again for one test.
#[test]
fn what_the_daemon_does_not_need_is_forbidden() {
    let directory = TempDir::new().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "double", "--ignored", "--nocapture"])
        .env(DOUBLE, directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("test double ... ok"), "{text}");
}

#[test]
#[ignore = "it confines its process, so another test starts one for it"]
fn double() {
    let Some(directory) = std::env::var_os(DOUBLE) else { panic!("the other test starts this one") };
    let directory = Path::new(&directory);
    let file = directory.join("file");
    fs::write(&file, "").unwrap();
    let listener = UnixListener::bind(directory.join("before")).unwrap();
    let limit = getrlimit(Resource::Nofile);
    let parent = rustix::process::getppid().unwrap();
    let map = || {
        // SAFETY: a new mapping; nothing is at the address that the kernel chooses.
        unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, ProtFlags::READ, MapFlags::PRIVATE).unwrap() }
    };
    // As the daemon, before it has threads: here they end up outside, so everything below is in this one.
    let mut needs = Needs::default();
    needs.socket(&directory.join("socket"));
    let enforced = confine(&needs).unwrap();
    assert_eq!(
        enforced,
        Confinement { file_system: true, system_calls: true },
        "this kernel has not all of it"
    );

    // What it needs.
    fs::read_to_string("/proc/self/status").unwrap();
    fs::read_dir("/sys/bus").unwrap();
    UnixStream::connect(directory.join("before")).unwrap();
    listener.accept().unwrap();
    drop(UnixListener::bind(directory.join("socket")).unwrap());
    fs::remove_file(directory.join("socket")).unwrap();
    std::thread::spawn(|| ()).join().unwrap();
    setrlimit(Resource::Nofile, limit).unwrap();

    // Programs.
    assert_eq!(Command::new("/bin/true").spawn().unwrap_err().kind(), PermissionDenied);
    // The network.
    assert_eq!(socket(AddressFamily::INET, SocketType::STREAM, None).unwrap_err(), Errno::PERM);
    assert_eq!(TcpStream::connect("127.0.0.1:9").unwrap_err().kind(), PermissionDenied);
    assert_eq!(socket(AddressFamily::NETLINK, SocketType::RAW, None).unwrap_err(), Errno::PERM);
    // Files.
    for path in [Path::new("/etc/passwd"), &file] {
        assert_eq!(fs::read(path).unwrap_err().kind(), PermissionDenied, "{}", path.display());
    }
    assert_eq!(fs::write("/proc/self/comm", "x").unwrap_err().kind(), PermissionDenied);
    assert_eq!(fs::write(directory.join("new"), "x").unwrap_err().kind(), PermissionDenied);
    assert_eq!(fs::create_dir(directory.join("new")).unwrap_err().kind(), PermissionDenied);
    assert_eq!(fs::rename(&file, directory.join("new")).unwrap_err().kind(), PermissionDenied);
    assert_eq!(
        fs::set_permissions(&file, fs::metadata(&file).unwrap().permissions()).unwrap_err().kind(),
        PermissionDenied
    );
    // Other processes.
    assert_eq!(fs::read_link(format!("/proc/{parent}/fd/0")).unwrap_err().kind(), PermissionDenied);
    let parent_id = parent;
    let parent = pidfd_open(parent, PidfdFlags::empty()).unwrap();
    assert_eq!(pidfd_getfd(&parent, 0, PidfdGetfdFlags::empty()).unwrap_err(), Errno::PERM);
    let unlimited = prlimit(Some(parent_id), Resource::Nofile, limit);
    assert_eq!(unlimited.unwrap_err(), Errno::PERM);
    // Memory that runs.
    // SAFETY: the mapping is this test's own, and nothing refers to it.
    assert_eq!(unsafe { mprotect(map(), 4096, MprotectFlags::EXEC) }.unwrap_err(), Errno::PERM);
}
