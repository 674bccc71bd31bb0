// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Feature bits and the configuration space.

use super::Check;
use crate::report::Seen;
use crate::session::{Bench, EVENT, NATIVE, Outcome, VERSION_1, broken, unseen};
use virtio_irq_proto::{Config, MAGIC, VERSION, wire};
use zerocopy::FromBytes;

pub(super) const CHECKS: &[Check] = &[
    ("IRQ-DEV-01", offers_version_1),
    ("IRQ-DEV-02", offers_no_reserved_bit),
    ("IRQ-DEV-03", max_vectors_is_enough),
    ("IRQ-DEV-04", identifies_itself),
    ("IRQ-DEV-05", ignores_writes),
    ("IRQ-DEV-06", does_not_change),
    ("IRQ-DEV-11", no_sources_without_the_feature),
    ("IRQ-DEV-48", sources_with_the_feature),
];

/// The bits that belong to a device: 0 to 23 and 50 on.
const DEVICE_BITS: u64 = 0xff_ffff | !0 << 50;

fn features(bench: &Bench<'_>) -> Outcome<(u64, Vec<Seen>)> {
    let features = bench.link()?.features()?;
    Ok((features, vec![Seen { what: "offered features", bytes: features.to_le_bytes().to_vec() }]))
}

fn offers_version_1(bench: &Bench<'_>) -> Outcome {
    let (features, seen) = features(bench)?;
    if features & VERSION_1 == 0 { broken("bit 32 is not offered", seen) } else { Ok(()) }
}

fn offers_no_reserved_bit(bench: &Bench<'_>) -> Outcome {
    let (features, seen) = features(bench)?;
    match features & DEVICE_BITS & !(NATIVE | EVENT) {
        0 => Ok(()),
        reserved => broken(format!("bit {} is offered", reserved.trailing_zeros()), seen),
    }
}

/// The configuration space as bytes and as fields.
fn config(bench: &Bench<'_>) -> Outcome<(wire::Config, Vec<Seen>)> {
    let mut link = bench.link()?;
    let features = link.features()?;
    link.negotiate(features & (VERSION_1 | NATIVE | EVENT))?;
    let bytes = link.config(0, 16)?;
    let Ok(config) = wire::Config::read_from_bytes(&bytes) else {
        return unseen("the configuration space cannot be read");
    };
    Ok((config, vec![Seen { what: "configuration space", bytes }]))
}

fn max_vectors_is_enough(bench: &Bench<'_>) -> Outcome {
    let (config, seen) = config(bench)?;
    match config.max_vectors.get() {
        few if few < Config::LEAST_MAX_VECTORS => broken(format!("max_vectors is {few}"), seen),
        _ => Ok(()),
    }
}

fn identifies_itself(bench: &Bench<'_>) -> Outcome {
    let (config, seen) = config(bench)?;
    if config.magic.get() != MAGIC {
        return broken(format!("magic is {:#010x}", config.magic), seen);
    }
    if config.version.get() != VERSION {
        return broken(format!("version is {}", config.version), seen);
    }
    if config.reserved0 != [0; 2] || config.reserved1 != [0; 2] {
        return broken("a reserved byte is not 0", seen);
    }
    Ok(())
}

fn ignores_writes(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let before = session.guest.link.config(0, 16)?;
    let mut inverted = before.clone();
    inverted.iter_mut().for_each(|byte| *byte = !*byte);
    // Whether the backend acknowledges the write or refuses it is not the driver's concern.
    let _ = session.guest.link.set_config(0, &inverted);
    let after = match session.guest.link.config(0, 16) {
        Ok(after) => after,
        Err(error) => {
            return broken(format!("after a write it cannot be read any more: {error}"), Vec::new());
        }
    };
    if after == before {
        return Ok(());
    }
    broken("a write changed it", vec![Seen { what: "configuration space after the write", bytes: after }])
}

fn does_not_change(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let before = session.guest.link.config(0, 16)?;
    session.functions()?;
    if let Ok(candidate) = session.candidate(1) {
        // Whether it gets anything does not matter.
        let _ = session.allocate_answer(candidate.any(1, 1))?;
    }
    let after = session.guest.link.config(0, 16)?;
    if after == before {
        return Ok(());
    }
    let seen = [("configuration space before", before), ("after some requests", after)];
    broken("it changed", seen.map(|(what, bytes)| Seen { what, bytes }).to_vec())
}

fn no_sources_without_the_feature(bench: &Bench<'_>) -> Outcome {
    let (features, _) = features(bench)?;
    let (config, seen) = config(bench)?;
    if features & EVENT == 0 && config.max_sources.get() != 0 {
        return broken(format!("max_sources is {}", config.max_sources), seen);
    }
    Ok(())
}

fn sources_with_the_feature(bench: &Bench<'_>) -> Outcome {
    let (features, _) = features(bench)?;
    let (config, seen) = config(bench)?;
    if features & EVENT != 0 && config.max_sources.get() == 0 {
        return broken("max_sources is 0", seen);
    }
    Ok(())
}
