// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The commands.

use crate::cli::{Cli, Command, Sources, Vectors, Watch, Which};
use crate::error::RunError;
use crate::listen;
use crate::show::Show;
use std::io::Write;
use std::time::{Duration, Instant};
use virtio_irq_proto::{Allocate, Delivery, Function, Layout, Source, Status, VectorRange};
use virtio_irq_userspace::{Driver, Options};

pub(crate) fn run(cli: &Cli, out: &mut impl Write) -> Result<(), RunError> {
    let options = Options { timeout: cli.timeout, ..Options::default() };
    let mut driver = Driver::connect(&cli.socket_path, options)?;
    let mut show = Show::new(out, cli.json);
    match &cli.command {
        Command::List => show.functions(&driver.functions()?)?,
        Command::Messages(vectors) => {
            let (function, range) = choose(&mut driver, vectors)?;
            let messages = driver
                .messages(function.id, range)
                .map_err(|source| RunError::Vectors { function: function.id, source })?;
            show.messages(&function, range, &messages)?;
        }
        Command::Block(vectors) => {
            let (function, range) = choose(&mut driver, vectors)?;
            let block = driver
                .block(function.id, range)
                .map_err(|source| RunError::Vectors { function: function.id, source })?;
            show.block(&function, range, &block)?;
        }
        Command::Allocate(sources) => {
            let (function, sources) = allocate(&mut driver, sources)?;
            show.sources(&function, &sources)?;
            driver.reset_function(function.id)?;
        }
        Command::Listen(listen) => {
            let (function, sources) = allocate(&mut driver, &listen.sources)?;
            listen::run(&mut driver, &function, &sources, listen, &mut show)?;
        }
        Command::Watch(limits) => watch(&mut driver, limits, &mut show)?,
    }
    Ok(())
}

fn choose(driver: &mut Driver, vectors: &Vectors) -> Result<(Function, VectorRange), RunError> {
    let function = pick(&driver.functions()?, &vectors.function).map_err(RunError::Which)?;
    let range = VectorRange { irq_type: vectors.kind.into(), first: vectors.first, count: vectors.count };
    Ok((function, range))
}

fn allocate(driver: &mut Driver, wanted: &Sources) -> Result<(Function, Vec<Source>), RunError> {
    /// Nothing tells when to ask again.
    const PAUSE: Duration = Duration::from_millis(200);
    let function = pick(&driver.functions()?, &wanted.function).map_err(RunError::Which)?;
    let request = Allocate {
        function: function.id,
        irq_type: wanted.kind.into(),
        layout: if wanted.contiguous { Layout::Contiguous } else { Layout::Any },
        least: wanted.least.unwrap_or(wanted.count),
        most: wanted.count,
        first: wanted.first,
        delivery: Delivery::Event,
    };
    if request.least > request.most {
        return Err(RunError::Bounds);
    }
    let deadline = wanted.wait.map(|wait| Instant::now() + wait);
    loop {
        match driver.allocate(request) {
            Ok(sources) => return Ok((function, sources)),
            Err(error)
                if matches!(error.status(), Some(Status::NotReady | Status::Busy))
                    && deadline.is_some_and(|deadline| Instant::now() < deadline) =>
            {
                driver.events(PAUSE)?;
            }
            Err(source) => return Err(RunError::Vectors { function: function.id, source }),
        }
    }
}

/// The one function that is meant.
fn pick(functions: &[Function], which: &Which) -> Result<Function, &'static str> {
    let meant = |function: &&Function| {
        which.function.is_none_or(|id| function.id.0 == id)
            && which.address.is_none_or(|address| function.guest_address == Some(address))
            && which.ids.is_none_or(|ids| (function.ids.vendor, function.ids.device) == ids)
    };
    let mut fitting = functions.iter().filter(meant);
    match (fitting.next(), fitting.next()) {
        (Some(function), None) => Ok(*function),
        (Some(_), Some(_)) => Err("several functions fit: name one with --function ID"),
        (None, _) if functions.is_empty() => Err("the device has no function"),
        (None, _) => Err("no function fits"),
    }
}

fn watch(driver: &mut Driver, limits: &Watch, show: &mut Show<impl Write>) -> Result<(), RunError> {
    /// An event or the loss of the connection ends a wait at any time; this is only when to start the next one.
    const ROUND: Duration = Duration::from_secs(3600);
    let mut left = limits.count.unwrap_or(u64::MAX);
    let end = limits.duration.map(|duration| Instant::now() + duration);
    while left > 0 {
        let round = end.map_or(ROUND, |end| end.saturating_duration_since(Instant::now()));
        for event in driver.events(round)? {
            if left > 0 {
                show.event(&event)?;
                left -= 1;
            }
        }
        if end.is_some_and(|end| end <= Instant::now()) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_irq_proto::{FunctionFlags, FunctionId, PciAddress, PciIds};

    fn function(id: u16, device: u16, devfn: u8) -> Function {
        Function {
            id: FunctionId(id),
            flags: FunctionFlags::NATIVE,
            guest_address: Some(PciAddress { segment: 0, bus: 0, devfn }),
            ids: PciIds { vendor: 0x17cb, device, ..PciIds::default() },
            intx_count: 0,
            msi_count: 32,
            msix_count: 0,
        }
    }

    const ANY: Which = Which { function: None, address: None, ids: None };

    #[test]
    fn the_only_function_needs_no_name() {
        assert_eq!(pick(&[function(3, 0x1103, 0x30)], &ANY).unwrap().id, FunctionId(3));
        assert_eq!(pick(&[], &ANY), Err("the device has no function"));
    }

    #[test]
    fn a_function_is_picked_by_id_address_or_ids() {
        let all = [function(3, 0x1103, 0x30), function(5, 0x1103, 0x38), function(6, 0x1104, 0x40)];
        let by_id = Which { function: Some(5), ..ANY };
        assert_eq!(pick(&all, &by_id).unwrap().id, FunctionId(5));
        let by_address = Which { address: Some(PciAddress { segment: 0, bus: 0, devfn: 0x38 }), ..ANY };
        assert_eq!(pick(&all, &by_address).unwrap().id, FunctionId(5));
        let by_ids = Which { ids: Some((0x17cb, 0x1104)), ..ANY };
        assert_eq!(pick(&all, &by_ids).unwrap().id, FunctionId(6));
        let twins = Which { ids: Some((0x17cb, 0x1103)), ..ANY };
        assert_eq!(pick(&all, &twins), Err("several functions fit: name one with --function ID"));
        let nobody = Which { function: Some(4), ..ANY };
        assert_eq!(pick(&all, &nobody), Err("no function fits"));
    }
}
