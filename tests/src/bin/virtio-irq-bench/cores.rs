// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which cores what is measured runs on: it makes more of a difference than anything else, and the scheduler's choice
//! changes from one moment to the next.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Where what is measured runs.
pub(crate) struct Place {
    /// None on a machine with a single core.
    cores: Option<[CpuSet; 2]>,
}

/// Runs `measure` on one core of this machine, and what it [starts there](Place::other) on another one.
pub(crate) fn apart<R>(measure: impl FnOnce(&Place) -> R) -> R {
    let all = sched_getaffinity(Pid::from_raw(0)).expect("a process knows its cores");
    let mut cores = (0..CpuSet::count()).filter(|core| all.is_set(*core).unwrap_or(false)).map(|core| {
        let mut set = CpuSet::new();
        set.set(core).expect("the number of a core");
        set
    });
    let place = Place { cores: cores.next().zip(cores.next()).map(<[_; 2]>::from) };
    if let Some([here, _]) = &place.cores {
        stay_on(here);
    }
    let result = measure(&place);
    stay_on(&all);
    result
}

/// Runs `measure`, and what it starts, on one core.
pub(crate) fn together<R>(measure: impl FnOnce() -> R) -> R {
    apart(|_| measure())
}

impl Place {
    /// Runs `start`, the processes and threads of which stay on the other core.
    pub(crate) fn other<R>(&self, start: impl FnOnce() -> R) -> R {
        let Some([here, there]) = &self.cores else { return start() };
        stay_on(there);
        let result = start();
        stay_on(here);
        result
    }
}

fn stay_on(cores: &CpuSet) {
    sched_setaffinity(Pid::from_raw(0), cores).expect("a process may choose among its cores");
}
