// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine itself: its filesystems, its modules, its start.

use crate::port::Port;
use crate::{failure, files};
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};
use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;
use virtio_irq_lab_agent::{Answer, Failure, Message, PAYLOAD};

/// Where a tree is mounted before it becomes the root.
const NEW_ROOT: &str = "/root";

/// 9p's largest request; QEMU's local server does not take more.
const TREE_OPTIONS: &str = "trans=virtio,version=9p2000.L,msize=512000,cache=loose";

const NO_OPTIONS: Option<&str> = None;

pub(crate) fn mount_kernel_filesystems() -> Result<(), Failure> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount_at(Some(kind), Path::new(target), Some(kind), MsFlags::empty(), NO_OPTIONS)?;
    }
    Ok(())
}

pub(crate) fn hello() -> Result<Message, Failure> {
    let read = |path: &str| {
        let text = fs::read_to_string(path).map_err(|error| failure(&format!("read {path}"), &error))?;
        Ok::<_, Failure>(text.trim().to_owned())
    };
    let uptime = read("/proc/uptime")?;
    let seconds: f64 = uptime.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or_default();
    Ok(Message::Hello {
        boot_id: read("/proc/sys/kernel/random/boot_id")?,
        kernel: read("/proc/sys/kernel/osrelease")?,
        uptime: std::time::Duration::from_secs_f64(seconds).as_millis().try_into().unwrap_or(u64::MAX),
    })
}

pub(crate) fn sleep(port: &Port, state: &str) -> Result<Answer, Failure> {
    port.without(|| files::write("/sys/power/state", state))?
}

pub(crate) fn load_module(name: &str, parameters: &str) -> Result<Answer, Failure> {
    let what = || format!("load module {name}");
    let path = Path::new(PAYLOAD).join(format!("{name}.ko"));
    let module = File::open(&path).map_err(|error| failure(&format!("open {}", path.display()), &error))?;
    let parameters = CString::new(parameters)
        .map_err(|_| Failure { what: format!("{}: NUL in parameters", what()), errno: None })?;
    match finit_module(&module, &parameters, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(Answer::Done),
        Err(errno) => Err(failed(what(), errno)),
    }
}

pub(crate) fn unload_module(name: &str) -> Result<Answer, Failure> {
    let what = || format!("unload module {name}");
    let name =
        CString::new(name).map_err(|_| Failure { what: format!("{}: NUL in name", what()), errno: None })?;
    delete_module(&name, DeleteModuleFlags::O_NONBLOCK).map_err(|errno| failed(what(), errno))?;
    Ok(Answer::Done)
}

pub(crate) fn enter_tree(tag: &str) -> Result<Answer, Failure> {
    let root = Path::new(NEW_ROOT);
    fs::create_dir_all(root).map_err(|error| failure(&format!("create {NEW_ROOT}"), &error))?;
    mount_at(Some(tag), root, Some("9p"), MsFlags::MS_RDONLY, Some(TREE_OPTIONS))?;
    for target in ["run", "tmp", "var/tmp"] {
        mount_at(Some("tmpfs"), &root.join(target), Some("tmpfs"), MsFlags::empty(), NO_OPTIONS)?;
    }
    let recursive = MsFlags::MS_BIND | MsFlags::MS_REC;
    for source in ["/dev", "/proc", "/sys", PAYLOAD] {
        let target = root.join(source.trim_start_matches('/'));
        mount_at(Some(source), &target, None, recursive, NO_OPTIONS)?;
    }
    // An initramfs cannot be the argument of pivot_root(2): the tree is moved over it instead.
    chdir(root).map_err(|errno| failed(format!("enter {NEW_ROOT}"), errno))?;
    mount_at(Some("."), Path::new("/"), None, MsFlags::MS_MOVE, NO_OPTIONS)?;
    chroot(".")
        .and_then(|()| chdir("/"))
        .map_err(|errno| failed("make the tree the root".to_owned(), errno))?;
    Ok(Answer::Done)
}

fn mount_at(
    source: Option<&str>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<(), Failure> {
    mount(source, target, kind, flags, options).map_err(|errno| {
        failed(format!("mount {} at {}", source.unwrap_or("nothing"), target.display()), errno)
    })
}

fn failed(what: String, errno: Errno) -> Failure {
    Failure { what, errno: Some(errno as i32) }
}
