// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The eventfds of a daemon's sources, as VFIO holds them: what a test signals is what the kernel signals when a vector
//! fires.

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::BTreeMap;
use std::fs::{File, read_dir, read_link, read_to_string};
use std::io::{self, Write};
use std::path::Path;
use virtio_irq_proto::SourceId;

/// One eventfd per source that the daemon delivers.
#[derive(Debug)]
pub struct Triggers(BTreeMap<SourceId, File>);

impl Triggers {
    /// Those of the sources that the process with this id has at the moment. It must be a child of this one, or this
    /// one privileged.
    ///
    /// # Errors
    /// The kernel refuses, or there is no such process.
    pub fn of(process: u32) -> io::Result<Self> {
        let process_id =
            i32::try_from(process).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(process_id, PidfdFlags::empty())?;
        let mut triggers = BTreeMap::new();
        for (fd, data) in deliveries(process)? {
            let eventfd = pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty())?;
            triggers.insert(SourceId(data as u32), File::from(eventfd));
        }
        Ok(Self(triggers))
    }

    /// Number of sources.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Lets a source fire.
    ///
    /// # Panics
    /// The daemon had no such source.
    pub fn fire(&self, source: SourceId) {
        let mut eventfd = self.0.get(&source).expect("the daemon has this source");
        eventfd.write_all(&1_u64.to_ne_bytes()).expect("an eventfd takes one more");
    }
}

/// The mark of what ends a wait for sources.
const ALARM: u64 = u64::MAX;

/// What the daemon's epoll instance of sources watches: descriptors, and the numbers that go with them. It is the one that
/// neither watches another instance nor is watched by one, as those of the worker and of the lookout, and has an alarm.
fn deliveries(process: u32) -> io::Result<Vec<(i32, u64)>> {
    let process = Path::new("/proc").join(process.to_string());
    let mut instances = BTreeMap::new();
    for entry in read_dir(process.join("fd"))? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // It can be closed by now.
        let is_epoll = read_link(entry.path()).is_ok_and(|path| path == Path::new("anon_inode:[eventpoll]"));
        if is_epoll {
            let info = read_to_string(process.join("fdinfo").join(name)).unwrap_or_default();
            instances.insert(fd, info.lines().filter_map(watched).collect::<Vec<_>>());
        }
    }
    let nested = |watched: &[(i32, u64)]| watched.iter().any(|(fd, _)| instances.contains_key(fd));
    let watched = |fd: &i32| instances.values().flatten().any(|(inner, _)| inner == fd);
    let has_alarm = |watches: &[(i32, u64)]| watches.iter().any(|(_, mark)| *mark == ALARM);
    let mut alone =
        instances.iter().filter(|(fd, watches)| has_alarm(watches) && !nested(watches) && !watched(fd));
    let (Some((_, sources)), None) = (alone.next(), alone.next()) else {
        return Err(io::Error::other("the process has not one epoll instance for its sources"));
    };
    Ok(sources.iter().copied().filter(|(_, mark)| *mark != ALARM).collect())
}

/// `tfd: 9 events: 80000001 data: 100000003 ...`, see `ep_show_fdinfo` in Linux' `fs/eventpoll.c`.
fn watched(line: &str) -> Option<(i32, u64)> {
    let mut words = line.strip_prefix("tfd:")?.split_whitespace();
    let fd = words.next()?.parse().ok()?;
    let data = words.skip_while(|word| *word != "data:").nth(1)?;
    Some((fd, u64::from_str_radix(data, 16).ok()?))
}
