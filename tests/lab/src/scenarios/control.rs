// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon's control socket, used by its own client on the host while a guest runs.

use super::daemon::Daemon;
use super::edu::{Edu, Shot};
use super::functions::{EDU, QMP};
use super::{Sabotage, Stand};
use crate::checks::{Unmet, expect};
use crate::error::Result;
use crate::host::{Host, RunningGuest};
use nix::libc::ENODEV;
use serde_json::Value;

pub(super) const DETACHED_TOO_EARLY: Sabotage = Sabotage {
    name: "detached-too-early",
    what: "the function is detached before the status is looked at",
    fails: "status-shows-the-pair",
};
pub(super) const KEEP_ATTACHED: Sabotage = Sabotage {
    name: "keep-attached",
    what: "the function is not detached",
    fails: "detached-function-is-gone",
};
pub(super) const ATTACHED_ELSEWHERE: Sabotage = Sabotage {
    name: "attached-elsewhere",
    what: "the function is attached as one that the guest sees at another address",
    fails: "attached-function-is-served",
};

/// The operator looks at what the guest was told, takes its function away and gives it back.
pub(super) fn function_comes_and_goes(
    stand: &mut Stand<'_>,
    host: &Host,
    daemon: &Daemon,
    guest: &RunningGuest,
) -> Result<()> {
    let edu = Edu::new(guest.agent());
    if stand.sabotaged("detached-too-early") {
        daemon.ctl(host, &["detach", EDU.host])?;
    }
    stand.report.check("status-shows-the-pair", &daemon.log(), || {
        let status = &daemon.ctl(host, &["status"])?["status"];
        let there = host.msi(EDU.host)?.pair;
        let function = &status["functions"]["0"];
        let told = &function["messages"][0];
        let same = told["address"] == format!("{:#010x}", there.address)
            && told["data"] == format!("{:#06x}", there.data);
        let seen = format!(
            "{}, frontend {}: told {told}, the host has {there}",
            function["name"], status["frontend"]["state"]
        );
        expect(same && function["name"] == EDU.host && status["frontend"]["state"] == "running", seen)
    })?;

    let keep = stand.sabotaged("keep-attached");
    stand.report.check("detached-function-is-gone", &daemon.log(), || {
        let answer = if keep { Value::Null } else { daemon.ctl(host, &["detach", EDU.host])? };
        match edu.host_pair() {
            Ok((pair, _)) => Err(Unmet::Seen(format!("{answer}; told {pair} all the same"))),
            Err(error) => expect(error.errno() == Some(ENODEV), format!("{answer}; the guest: {error}")),
        }
    })?;

    let elsewhere = format!("{},guest=00:1e.0", EDU.host);
    // What to attach, and as what, only QEMU knows.
    let attach = if stand.sabotaged("attached-elsewhere") {
        &["attach", &elsewhere][..]
    } else {
        &["attach", "--qmp", QMP]
    };
    let mut shot = Shot::default();
    stand.report.check("attached-function-is-served", &daemon.log(), || {
        let answer = daemon.ctl(host, attach)?;
        let arrived = shot.arrive(host, guest.agent(), "host", 1, 1)?;
        Ok(format!("{answer}; {arrived}"))
    })?;
    stand.report.row(shot.row("detached and attached again"));
    // The function is tied to this VMM's process now, by a descriptor. The daemon is to end as it began.
    daemon.ctl(host, &["detach", EDU.host])?;
    daemon.ctl(host, &["attach", &EDU.spec()])?;
    Ok(())
}
