//! What the mediation of a run cost, merged over its tests.

use std::collections::BTreeMap;

use faultbox_contract::Meter;

use super::RunReport;
use crate::plan::MeterSnapshot;

/// One line of the overhead table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// "db.pg" for an interface, "db" for a service.
    pub name: String,
    /// The protocol; empty for a service.
    pub protocol: String,
    /// Requests, or trapped calls.
    pub count: u64,
    /// Nanoseconds.
    pub p50: u64,
    /// Nanoseconds.
    pub p90: u64,
    /// Nanoseconds.
    pub p99: u64,
    /// Nanoseconds.
    pub p99_9: u64,
    /// Nanoseconds.
    pub max: u64,
}

/// The added time of the proxies, per interface that saw a request, by name.
pub fn interfaces(report: &RunReport) -> Vec<Cost> {
    merge(report.tests.iter().flat_map(|t| &t.interfaces))
}

/// The decision time of the supervisor, per service that trapped a call, by name.
pub fn syscalls(report: &RunReport) -> Vec<Cost> {
    merge(report.tests.iter().flat_map(|t| &t.syscalls))
}

fn merge<'a>(snapshots: impl Iterator<Item = &'a MeterSnapshot>) -> Vec<Cost> {
    let mut meters: BTreeMap<&str, (&str, Meter)> = BTreeMap::new();
    for snapshot in snapshots {
        meters
            .entry(&snapshot.name)
            .or_insert_with(|| (&snapshot.protocol, Meter::default()))
            .1
            .merge(&snapshot.pairs);
    }
    meters
        .into_iter()
        .filter(|(_, (_, meter))| meter.count() > 0)
        .map(|(name, (protocol, meter))| Cost {
            name: name.to_owned(),
            protocol: protocol.to_owned(),
            count: meter.count(),
            p50: meter.quantile_ns(0.5),
            p90: meter.quantile_ns(0.9),
            p99: meter.quantile_ns(0.99),
            p99_9: meter.quantile_ns(0.999),
            max: meter.max_ns(),
        })
        .collect()
}
