// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Counting the interrupts of sources.

use crate::cli::Listen;
use crate::error::RunError;
use crate::show::Show;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};
use virtio_irq_proto::{Event, Function, IrqType, Source, SourceRange};
use virtio_irq_userspace::Driver;

/// How often the counts on a terminal are brought up to date.
const REFRESH: Duration = Duration::from_millis(250);
/// How long a wait takes where nothing has to be brought up to date.
const ROUND: Duration = Duration::from_secs(3600);

/// Counts until a limit is reached, and shows that.
pub(crate) fn run(
    driver: &mut Driver,
    function: &Function,
    sources: &[Source],
    limits: &Listen,
    show: &mut Show<'_, impl Write>,
) -> Result<(), RunError> {
    let live = std::io::stdout().is_terminal();
    let is_pin = IrqType::from(limits.sources.kind) == IrqType::Intx;
    let end = limits.duration.map(|duration| Instant::now() + duration);
    let mut left = limits.interrupts.unwrap_or(u64::MAX);
    let mut counts = vec![0; sources.len()];
    let mut over = 0;
    let mut shown = Instant::now();
    show.counting(function, sources)?;
    if live {
        show.counts(sources, &counts, over)?;
        over = sources.len() + 1;
    }
    while left > 0 && end.is_none_or(|end| Instant::now() < end) {
        let round = if live { REFRESH } else { ROUND };
        let round = end.map_or(round, |end| round.min(end.saturating_duration_since(Instant::now())));
        for event in driver.events(round)? {
            let place = |id| sources.iter().position(|source| source.id == id);
            match event {
                Event::Interrupt { source, .. } if left > 0 => {
                    if let Some(count) = place(source).and_then(|at| counts.get_mut(at)) {
                        *count += 1;
                        left -= 1;
                        show.counted(source, *count)?;
                    }
                    if is_pin {
                        driver.unmask(SourceRange::one(source))?;
                    }
                }
                Event::Interrupt { .. } => {}
                Event::SourceRevoked { source, .. } => {
                    show.event(&event)?;
                    over = 0;
                    driver.free(SourceRange::one(source))?;
                }
                Event::FunctionGone { .. } | Event::MessageChanged { .. } => {
                    show.event(&event)?;
                    over = 0;
                }
            }
        }
        if live && shown.elapsed() >= REFRESH {
            show.counts(sources, &counts, over)?;
            over = sources.len() + 1;
            shown = Instant::now();
        }
        // Nothing more can come.
        if driver.sources().next().is_none() {
            break;
        }
    }
    show.counts(sources, &counts, over)?;
    Ok(())
}
