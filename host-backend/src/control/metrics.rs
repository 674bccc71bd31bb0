// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The counts in the text format of OpenMetrics, which Prometheus reads.

use super::status::{Sample, type_name};
use crate::counters::{EVENTS, REPLIES, REQUESTS};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;
use virtio_irq_proto::FunctionId;

/// What an HTTP response says of it.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The page.
pub(super) fn page(sample: Arc<Sample>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("virtio_irq");
    registry.register_collector(Box::new(Collector(sample)));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

#[derive(Debug)]
struct Collector(Arc<Sample>);

type Labels = Vec<(&'static str, String)>;

impl prometheus_client::collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Sample { counts, device, names, .. } = self.0.as_ref();
        let one = |label, name: &str| vec![(label, name.to_owned())];
        let to = &mut encoder;
        let requests =
            REQUESTS.iter().zip(counts.requests).map(|((name, _), count)| (one("type", name), count));
        family(to, "requests", "Requests of the guest's driver", ConstCounter::new, requests)?;
        let replies = REPLIES.iter().zip(counts.replies).map(|(name, count)| (one("status", name), count));
        family(to, "replies", "Replies to the guest's driver", ConstCounter::new, replies)?;
        let events = EVENTS.iter().zip(counts.events).map(|((name, _), count)| (one("type", name), count));
        family(to, "events", "Events in buffers of the guest's driver", ConstCounter::new, events)?;
        let failures = [(Labels::new(), counts.host_failures)].into_iter();
        family(to, "host_failures", "Calls to the host that failed", ConstCounter::new, failures)?;
        let frontends = [(Labels::new(), counts.frontends)].into_iter();
        family(to, "frontend_connections", "Frontends that connected", ConstCounter::new, frontends)?;
        let state = [(one("state", counts.frontend.name()), 1)].into_iter();
        family(to, "frontend", "State of the frontend", ConstGauge::new, state)?;
        let quota = [(Labels::new(), u64::from(device.quota.guest))].into_iter();
        family(to, "max_sources", "Sources that the guest may hold", ConstGauge::new, quota)?;
        let draining = [(Labels::new(), u64::from(device.draining))].into_iter();
        family(to, "draining", "Whether no further source is given", ConstGauge::new, draining)?;

        let named = |id: &FunctionId| names.get(id).cloned().unwrap_or_else(|| id.to_string());
        let held = device.functions.iter().filter(|function| !function.gone).map(|function| {
            let id = function.assigned.function.id;
            let held = device.sources.iter().filter(|source| source.function == id).count();
            (
                vec![("function", id.0.to_string()), ("name", named(&id))],
                u64::try_from(held).unwrap_or(u64::MAX),
            )
        });
        family(to, "sources", "Sources that the guest holds", ConstGauge::new, held)?;
        let source = |count: fn(&crate::device::SourceCounts) -> u64| {
            device.sources.iter().map(move |source| {
                let labels = vec![
                    ("source", source.id.0.to_string()),
                    ("function", source.function.0.to_string()),
                    ("type", type_name(source.irq_type).to_owned()),
                    ("vector", source.vector.to_string()),
                ];
                (labels, count(&source.counts))
            })
        };
        let fired = source(|counts| counts.fired);
        family(to, "source_fired", "How often a source was found to have fired", ConstCounter::new, fired)?;
        let delivered = source(|counts| counts.delivered);
        family(to, "source_delivered", "INTERRUPT events of a source", ConstCounter::new, delivered)
    }
}

fn family<M: EncodeMetric + TypedMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: fn(u64) -> M,
    values: impl Iterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, M::TYPE)?;
    for (labels, value) in values {
        if labels.is_empty() {
            return metric(value).encode(family);
        }
        metric(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
