// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! INTx sources: the device masks one when it delivers, as the host does with the pin.

use super::Check;
use crate::provoke::Action;
use crate::session::{Bench, Candidate, Outcome, Session, Witness, unseen};
use virtio_irq_proto::{Source, SourceRequest, Status};

pub(super) const CHECKS: &[Check] =
    &[("IRQ-DEV-57", pins_mask_themselves), ("IRQ-DEV-71", pins_that_were_not_armed_stay_masked)];

/// A pin whose INTERRUPT came, and a source of another function that shows what else comes.
struct Masked {
    pin: Candidate,
    source: Source,
    witness: Witness,
}

impl Masked {
    fn new(session: &mut Session<'_>) -> Outcome<Self> {
        let [function, other] = session.two_candidates(1)?;
        if !function.intx {
            return unseen("needs a function with a pin");
        }
        let pin = function.pin();
        let (source, witness) = (session.hold(&pin, 0)?, session.witness(&other, 0)?);
        session.listen();
        session.raise(&pin, 0)?;
        session.until(source.id)?;
        Ok(Self { pin, source, witness })
    }

    /// The pin is raised and delivers nothing.
    fn stays_silent(&self, session: &mut Session<'_>, why: &str) -> Outcome {
        session.raise(&self.pin, 0)?;
        session.stays_silent(self.source.id, &self.witness, why)
    }
}

fn pins_mask_themselves(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let masked = Masked::new(&mut session)?;
    masked.stays_silent(&mut session, "an INTx source delivers again before UNMASK")?;
    session.must(SourceRequest::Unmask, masked.source.id)?;
    let why = "an INTx source whose pin is asserted delivers nothing after UNMASK";
    session.delivers(masked.source.id, &masked.witness, why)
}

fn pins_that_were_not_armed_stay_masked(bench: &Bench<'_>) -> Outcome {
    let mut session = bench.session()?;
    let masked = Masked::new(&mut session)?;
    session.provoke(Action::Fail { function: masked.pin.id.0 })?;
    if session.with_source(SourceRequest::Unmask, masked.source.id)?.is(Status::Ok) {
        return unseen("needs the host to fail at UNMASK");
    }
    masked.stays_silent(&mut session, "a pin that the host did not arm delivers")?;
    session.must(SourceRequest::Unmask, masked.source.id)?;
    session.raise(&masked.pin, 0)?;
    session.delivers(masked.source.id, &masked.witness, "after a failed UNMASK another one does not unmask")
}
