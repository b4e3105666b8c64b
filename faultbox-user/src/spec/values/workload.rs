//! What `workload(...)` returns.

use std::fmt;

use allocative::Allocative;
use serde_json::{Map, Value as Json, json};
use starlark::values::list::AllocList;
use starlark::values::structs::AllocStruct;
use starlark::values::{
    Heap, NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, Value,
    starlark_value,
};

use crate::spec::context::no_attribute;
use crate::spec::convert::alloc_json;
use crate::workload::tally::{self, Summary};

/// The result of a load; latencies in milliseconds.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct WorkloadValue {
    /// What was counted.
    pub summary: Summary,
    /// When it began, in seconds on the clock of the test's events.
    pub began: f64,
}
starlark::starlark_simple_value!(WorkloadValue);

const ATTRIBUTES: &[&str] = &[
    "count",
    "ok",
    "failed",
    "errors",
    "p50",
    "p90",
    "p99",
    "p99_9",
    "max",
    "mean",
    "rate",
    "offered",
    "late",
    "max_lag_ms",
    "unsent",
    "overloaded",
    "began",
    "duration_ms",
    "timeline",
];

/// A float as JSON has it, down to what a clock can tell.
fn rounded(ms: f64) -> f64 {
    (ms * 1e6).round() / 1e6
}

impl WorkloadValue {
    /// The result as a JSON object, an entry per attribute.
    pub fn json(&self) -> Json {
        Json::Object(Map::from_iter(
            ATTRIBUTES
                .iter()
                .filter_map(|a| Some(((*a).to_owned(), self.attribute(a)?))),
        ))
    }

    fn attribute(&self, name: &str) -> Option<Json> {
        let s = &self.summary;
        let quantile = |share| json!(tally::quantile_ms(&s.latency, share).map(rounded));
        Some(match name {
            "count" => json!(s.count),
            "ok" => json!(s.count - s.failed),
            "failed" => json!(s.failed),
            "errors" => Json::Object(
                s.errors
                    .iter()
                    .map(|(kind, n)| (kind.clone(), json!(n)))
                    .collect(),
            ),
            "p50" => quantile(0.5),
            "p90" => quantile(0.9),
            "p99" => quantile(0.99),
            "p99_9" => quantile(0.999),
            "max" => quantile(1.0),
            "mean" => match s.count {
                0 => Json::Null,
                _ => json!(rounded(s.latency.mean() / 1e6)),
            },
            "rate" => json!(s.rate),
            "offered" => json!(s.offered),
            "late" => json!(s.late),
            "max_lag_ms" => json!(rounded(s.lag.as_secs_f64() * 1e3)),
            "unsent" => json!(s.unsent),
            "overloaded" => json!(s.overloaded),
            "began" => json!(self.began),
            "duration_ms" => json!(rounded(s.took.as_secs_f64() * 1e3)),
            "timeline" => Json::Array(self.timeline().into_iter().map(Json::Object).collect()),
            _ => return None,
        })
    }

    fn timeline(&self) -> Vec<Map<String, Json>> {
        self.summary
            .timeline
            .iter()
            .map(|slot| {
                let start = slot.start.as_secs_f64();
                let quantile = |share| tally::quantile_ms(&slot.latency, share).map(rounded);
                let fields = [
                    ("start", json!(start)),
                    ("time", json!(self.began + start)),
                    ("count", json!(slot.count)),
                    ("errors", json!(slot.failed)),
                    ("p50", json!(quantile(0.5))),
                    ("p99", json!(quantile(0.99))),
                    ("max", json!(quantile(1.0))),
                ];
                fields
                    .map(|(name, value)| (name.to_owned(), value))
                    .into_iter()
                    .collect()
            })
            .collect()
    }
}

impl fmt::Display for WorkloadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.summary;
        write!(f, "workload(count={}, ok={}", s.count, s.count - s.failed)?;
        if s.failed > 0 {
            let errors = self.attribute("errors").unwrap_or_default();
            write!(f, ", errors={errors}")?;
        }
        write!(f, ", rate={:.1}", s.rate)?;
        if let Some(offered) = s.offered {
            write!(f, ", offered={offered}")?;
        }
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            if let Some(ms) = tally::quantile_ms(&s.latency, share) {
                write!(f, ", {name}={ms:.2}")?;
            }
        }
        if s.overloaded {
            write!(f, ", overloaded=True, late={}, unsent={}", s.late, s.unsent)?;
        }
        f.write_str(")")
    }
}

#[starlark_value(type = "workload")]
impl<'v> StarlarkValue<'v> for WorkloadValue {
    fn get_attr(&self, attribute: &str, heap: Heap<'v>) -> Option<Value<'v>> {
        if attribute == "timeline" {
            // Entries are structs, so that `entry.p99` reads like `r.p99`.
            let entry = |fields: Map<String, Json>| {
                let fields: Vec<(&str, Value<'v>)> = fields
                    .iter()
                    .map(|(name, value)| (name.as_str(), alloc_json(heap, value)))
                    .collect();
                heap.alloc(AllocStruct(fields))
            };
            let entries: Vec<Value<'v>> = self.timeline().into_iter().map(entry).collect();
            return Some(heap.alloc(AllocList(entries)));
        }
        let found = self.attribute(attribute);
        if found.is_none() {
            no_attribute("the result of a workload", attribute, ATTRIBUTES);
        }
        found.map(|json| alloc_json(heap, &json))
    }

    fn has_attr(&self, attribute: &str, _heap: Heap<'v>) -> bool {
        ATTRIBUTES.contains(&attribute)
    }

    fn dir_attr(&self) -> Vec<String> {
        ATTRIBUTES.iter().map(|a| (*a).to_owned()).collect()
    }
}
