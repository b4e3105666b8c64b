//! The report as one JSON document: `docs/report.schema.json` describes it.

use serde_json::{Map, Value, json};

use super::budget::{self, Judged};
use super::overhead::{self, Cost};
use super::{RunReport, matrix_rows};
use crate::plan::{Outcome, Reason, TestReport};

/// The document's version: a consumer that knows it understands every document that carries it. Fields may be added to a version, never
/// removed or given another meaning.
pub const SCHEMA: u32 = 1;

/// The whole document.
pub fn document(report: &RunReport) -> Value {
    let summary: Map<String, Value> = Outcome::ALL
        .iter()
        .map(|o| (o.name().to_owned(), report.count(*o).into()))
        .collect();
    json!({
        "schema": SCHEMA,
        "spec": report.spec,
        "seed": report.seed,
        "duration_ms": rounded(report.duration_ms),
        "interrupted": report.interrupted,
        "summary": summary,
        "tests": report.tests.iter().map(test).collect::<Vec<_>>(),
        "matrix": matrix_rows(report)
            .map(|row| json!({
                "scenario": row.scenario,
                "fault": row.fault,
                "outcome": row.test.outcome,
                "test": row.test.name,
            }))
            .collect::<Vec<_>>(),
        "overhead": {
            "interfaces": overhead::interfaces(report)
                .iter()
                .map(|c| json!({
                    "interface": c.name,
                    "protocol": c.protocol,
                    "requests": c.count,
                    "added_us": quantiles(c),
                }))
                .collect::<Vec<_>>(),
            "syscalls": overhead::syscalls(report)
                .iter()
                .map(|c| json!({
                    "service": c.name,
                    "trapped": c.count,
                    "decision_us": quantiles(c),
                }))
                .collect::<Vec<_>>(),
            "budgets": budget::judge(report).iter().map(Judged::json).collect::<Vec<_>>(),
        },
        "notes": report.notes,
    })
}

/// The document as text, with a final line break.
pub fn render(report: &RunReport) -> String {
    format!("{:#}\n", document(report))
}

fn test(test: &TestReport) -> Value {
    json!({
        "name": test.name,
        "outcome": test.outcome,
        "reason": test.reason.as_ref().map(|r| &r.message),
        "details": test.reason.as_ref().map(details),
        "duration_ms": rounded(test.duration_ms),
        "body_ms": rounded(test.body_ms),
        "seed": test.seed,
        "faults": test.faults
            .iter()
            .map(|f| json!({
                "name": f.name,
                "target": f.target,
                "action": f.action,
                "hits": f.hits,
                "matched": f.matched,
                "shadowed": f.shadowed,
                "mechanism": f.mechanism,
                "armed_us": f.armed_us,
            }))
            .collect::<Vec<_>>(),
        "assertions": test.assertions,
        "result": test.result,
        "prints": test.prints,
        "notes": test.notes,
        "logs": test.logs
            .iter()
            .map(|l| json!({"service": l.service, "lines": l.lines, "ended": l.ended}))
            .collect::<Vec<_>>(),
    })
}

fn details(reason: &Reason) -> Value {
    json!({
        "expected": reason.expected,
        "actual": reason.actual,
        "file": reason.location.as_ref().map(|l| &l.pos.file),
        "line": reason.location.as_ref().map(|l| l.pos.line),
        "column": reason.location.as_ref().map(|l| l.pos.column),
        "help": reason.help,
        "blame": reason.blame,
    })
}

fn quantiles(cost: &Cost) -> Value {
    let us = |ns: u64| ns as f64 / 1e3;
    json!({"p50": us(cost.p50), "p90": us(cost.p90), "p99": us(cost.p99), "max": us(cost.max)})
}

/// Milliseconds down to the microsecond; what the clock says beyond is noise.
fn rounded(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}
