// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process that runs out of descriptors. One test, since it is about the whole process.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test program: what fails here fails the test")]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::Arc;
use vhost_device_irq::bridge::Bridge;
use vhost_device_irq::device::Quota;
use vhost_device_irq::vhost_user::Session;

fn open_files() -> u64 {
    std::fs::read_dir("/proc/self/fd").unwrap().count() as u64
}

#[test]
fn a_frontend_that_cannot_be_served_costs_no_descriptor() {
    let bridge = Arc::new(Bridge::new(Vec::new(), Quota { guest: 1, function: 1 }).unwrap());
    let before = open_files();
    let usual = getrlimit(Resource::Nofile);
    let mut failures = 0;
    for further in 0.. {
        let limit = Rlimit { current: Some(before + further), maximum: usual.maximum };
        setrlimit(Resource::Nofile, limit).unwrap();
        let made = Session::new(bridge.clone());
        setrlimit(Resource::Nofile, usual).unwrap();
        match made {
            Ok((session, daemon)) => {
                Session::end(session, daemon);
                break;
            }
            Err(_) => failures += 1,
        }
        assert_eq!(open_files(), before, "with room for {further} descriptors");
    }
    assert_eq!(open_files(), before);
    assert!(failures > 4, "{failures}");
}
