//! A bench as one JSON document, and what a later one reads of it.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::analysis::{Bench, Finding, Generator, Row, Side};
use super::drive::Block;
use super::judge::Judged;
use super::log;
use super::machine::Machine;
use super::plan::Subject;
use super::stats::{Interval, LEVEL};
use crate::report::budget::Quantile;
use crate::workload::Shape;

/// The document's version. Fields may be added to a version, never removed or given another meaning.
pub const SCHEMA: u64 = 1;

/// The whole document as text.
pub fn render(bench: &Bench, judged: &[Judged], changes: &[Change]) -> String {
    format!("{:#}\n", document(bench, judged, changes))
}

/// The whole document.
pub fn document(bench: &Bench, judged: &[Judged], changes: &[Change]) -> Value {
    json!({
        "schema": SCHEMA,
        "kind": "bench",
        "faultbox": env!("CARGO_PKG_VERSION"),
        "spec": bench.spec,
        "seed": bench.seed,
        "duration_ms": bench.duration_ms,
        "level": LEVEL,
        "machine": bench.machine,
        "trial": bench.plan.trial.map(|t| t.to_string()),
        "subjects": bench.subjects.iter().map(subject).collect::<Vec<_>>(),
        "skipped": bench.skipped
            .iter()
            .map(|s| json!({"name": s.name, "reason": s.reason}))
            .collect::<Vec<_>>(),
        "budgets": judged
            .iter()
            .map(|j| json!({
                "budget": j.budget,
                "subject": j.subject,
                "standing": j.standing.name(),
                "why": j.why,
            }))
            .collect::<Vec<_>>(),
        "changes": changes.iter().map(Change::json).collect::<Vec<_>>(),
        "notes": bench.notes,
    })
}

/// A number that may not be there: JSON has no NaN.
fn number(value: f64) -> Value {
    match value.is_finite() {
        true => json!(value),
        false => Value::Null,
    }
}

fn interval(interval: Option<Interval>, scale: f64) -> Value {
    match interval {
        Some(i) => json!({
            "value": number(i.value * scale),
            "low": number(i.low * scale),
            "high": number(i.high * scale),
        }),
        None => Value::Null,
    }
}

fn subject(finding: &Finding) -> Value {
    let quantile = |row: &Row| {
        let value = json!({
            "base_us": number(row.base / 1e3),
            "other_us": number(row.other / 1e3),
            "added_us": interval(row.added, 1e-3),
            "noise_us": row.noise.map_or(Value::Null, |n| number(n / 1e3)),
        });
        (row.quantile.name().to_owned(), value)
    };
    let (rate, callers) = match finding.subject.shape {
        Shape::Open { rate, callers } => (Some(rate), callers),
        Shape::Closed { callers } => (None, callers),
    };
    let [base, other] = &finding.sides;
    let names = finding.subject.sides();
    json!({
        "name": finding.subject.name,
        "what": finding.subject.what,
        "protocol": finding.subject.protocol,
        "label": finding.subject.label(),
        "rate": rate,
        "connections": callers,
        "generator": finding.generator.map(generator),
        "quantiles": finding.rows.iter().map(quantile).collect::<Map<_, _>>(),
        "throughput_ratio": interval(finding.throughput, 1.0),
        "cpu_ratio": interval(finding.own_cpu, 1.0),
        "processes": finding.cpu
            .iter()
            .map(|c| json!({
                "name": c.name,
                "base_cpu_us": number(c.base_us),
                "other_cpu_us": number(c.other_us),
                "memory_bytes": c.memory,
            }))
            .collect::<Vec<_>>(),
        "inside": finding.inside
            .iter()
            .map(|i| {
                let quantiles = Quantile::ALL.iter().zip(&i.added);
                let added: Map<String, Value> = quantiles
                    .map(|(q, ns)| (q.name().to_owned(), json!(*ns as f64 / 1e3)))
                    .collect();
                json!({"name": i.name, "count": i.requests, "added_us": added})
            })
            .collect::<Vec<_>>(),
        "sides": names,
        "trapped": finding.trapped,
        "base": side(base),
        "other": side(other),
        "blocks": finding.blocks.iter().map(|b| block(b, names)).collect::<Vec<_>>(),
        "log": log::write(finding),
        "error": finding.error,
    })
}

fn generator(generator: Generator) -> Value {
    json!({
        "cpu_us": number(generator.cpu_us),
        "base_share": number(generator.share()),
        "most_rate": number(generator.most),
        "idle_rate": generator.idling.map(|i| number(i.rate)),
        "idle_cpu_us": generator.idling.map(|i| number(i.cpu_us)),
    })
}

fn side(side: &Side) -> Value {
    let errors: Map<String, Value> = side
        .errors
        .iter()
        .map(|(kind, n)| (kind.clone(), json!(n)))
        .collect();
    json!({
        "count": side.count,
        "failed": side.failed,
        "errors": errors,
        "rate": side.rate,
        "unsent": side.unsent,
        "overloaded_blocks": side.overloaded,
        "overrun_blocks": side.overran,
    })
}

fn block(block: &Block, names: [&'static str; 2]) -> Value {
    let cpu = |r: &super::cost::Reading| json!(r.cpu.as_secs_f64() * 1e3);
    let services: Map<String, Value> = block
        .services
        .iter()
        .map(|(name, reading)| (name.clone(), cpu(reading)))
        .collect();
    json!({
        "side": names[usize::from(!block.base)],
        "start_ms": block.start.as_secs_f64() * 1e3,
        "took_ms": block.took.as_secs_f64() * 1e3,
        "count": block.count(),
        "failed": block.failed,
        "unsent": block.unsent,
        "unanswered": block.unanswered,
        "overrun_ms": block.overrun.as_secs_f64() * 1e3,
        "kept_rate": !block.overloaded,
        "p50_us": number(block_quantile(block, 0.5) / 1e3),
        "p99_us": number(block_quantile(block, 0.99) / 1e3),
        "own_cpu_ms": cpu(&block.own),
        "services_cpu_ms": services,
    })
}

/// A quantile of one block in nanoseconds; NaN without a call.
pub fn block_quantile(block: &Block, share: f64) -> f64 {
    let wanted = share * block.count() as f64;
    let mut seen = 0.0;
    for (ns, n) in &block.pairs {
        seen += *n as f64;
        if seen >= wanted {
            return *ns as f64;
        }
    }
    f64::NAN
}

/// The most that a baseline may have: ours have some hundred kilobytes a subject.
const LONGEST: u64 = 16 << 20;

/// An earlier bench, as far as a later one compares itself with it.
#[derive(Debug, Clone)]
pub struct Baseline {
    /// The spec as its user named it.
    spec: String,
    /// The version of Faultbox.
    version: String,
    /// Where it ran.
    pub machine: Machine,
    /// Subject, what it did, quantile, what was added in nanoseconds.
    added: Vec<(String, String, Quantile, Interval)>,
    /// Subjects, with what they did and how they were called.
    subjects: Vec<(String, String, Value)>,
    /// Subject, what it did, and its latencies by side.
    latencies: Vec<(String, String, log::Sides)>,
}

impl Baseline {
    /// Reads a file that has what [`render`] wrote.
    ///
    /// # Errors
    /// It cannot be read, is no regular file or too large, or as [`Baseline::read`]; a lower-case fragment.
    pub fn open(path: &Path) -> Result<Baseline, String> {
        let unreadable = |e: std::io::Error| format!("it cannot be read: {e}");
        // Opening a pipe would wait for somebody to write.
        let mut options = File::options();
        let options = options.read(true).custom_flags(nix::libc::O_NONBLOCK);
        let file = options.open(path).map_err(unreadable)?;
        if !file.metadata().map_err(unreadable)?.is_file() {
            return Err("it is no regular file".to_owned());
        }
        let mut text = vec![];
        file.take(LONGEST + 1)
            .read_to_end(&mut text)
            .map_err(unreadable)?;
        if text.len() as u64 > LONGEST {
            return Err(format!("it has more than {} MiB", LONGEST >> 20));
        }
        Baseline::read(&String::from_utf8_lossy(&text))
    }

    /// Reads what [`render`] wrote.
    ///
    /// # Errors
    /// It is no document of a bench, one of another version, one that was tried out with a known effect, or one whose figures cannot be; a
    /// lower-case fragment.
    pub fn read(text: &str) -> Result<Baseline, String> {
        let document: Value =
            serde_json::from_str(text).map_err(|e| format!("it is no JSON document: {e}"))?;
        if document["kind"] != "bench" {
            return Err("it is no document of `faultbox bench --json`".to_owned());
        }
        if document["schema"] != SCHEMA {
            return Err(format!(
                "it has version {}, and this faultbox reads version {SCHEMA}",
                document["schema"]
            ));
        }
        if let Some(trial) = document["trial"].as_str() {
            return Err(format!(
                "it was taken with --trial {trial}: its figures are of an effect that was put in, and nothing can be compared with them"
            ));
        }
        let machine = serde_json::from_value(document["machine"].clone())
            .map_err(|e| format!("its `machine` cannot be read: {e}"))?;
        let said = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
        let (mut added, mut subjects, mut latencies) = (vec![], vec![], vec![]);
        for subject in document["subjects"].as_array().into_iter().flatten() {
            let text = |name: &str| subject[name].as_str().unwrap_or_default().to_owned();
            subjects.push((text("name"), text("what"), load(subject)));
            let sides = log::read(&text("log"))
                .map_err(|e| format!("the `log` of its {} cannot be read: {e}", text("name")))?;
            latencies.push((text("name"), text("what"), sides));
            for quantile in Quantile::ALL {
                let value = &subject["quantiles"][quantile.name()]["added_us"];
                let ns = |name: &str| value[name].as_f64().map(|us| us * 1e3);
                if let (Some(value), Some(low), Some(high)) = (ns("value"), ns("low"), ns("high")) {
                    let interval = Interval { value, low, high };
                    let sound = [value, low, high].into_iter().all(f64::is_finite)
                        && low <= value
                        && value <= high;
                    if !sound {
                        return Err(format!(
                            "the {} of its {} is no interval: {low} to {high} ns around {value}",
                            quantile.name(),
                            text("name")
                        ));
                    }
                    added.push((text("name"), text("what"), quantile, interval));
                }
            }
        }
        Ok(Baseline {
            spec: said("spec"),
            version: said("faultbox"),
            machine,
            added,
            subjects,
            latencies,
        })
    }

    /// The latencies of one side of what is the same subject now.
    pub fn latency(&self, subject: &Subject, side: &str) -> Option<Histogram<u64>> {
        let Subject { name, what, .. } = subject;
        let (.., sides) = self
            .latencies
            .iter()
            .find(|(n, w, _)| n == name && w == what)?;
        sides.get(side).cloned()
    }

    /// What has changed since, wherever both say something.
    pub fn changes(&self, bench: &Bench) -> Vec<Change> {
        let mut all = vec![];
        for finding in &bench.subjects {
            let Subject { name, what, .. } = &finding.subject;
            for row in &finding.rows {
                let before = self
                    .added
                    .iter()
                    .find(|(n, w, q, _)| n == name && w == what && *q == row.quantile);
                if let (Some(now), Some((.., before))) = (row.added, before) {
                    all.push(Change {
                        subject: finding.subject.label(),
                        quantile: row.quantile,
                        before: *before,
                        now,
                    });
                }
            }
        }
        all
    }

    /// What makes a comparison worth less.
    pub fn caveats(&self, bench: &Bench) -> Vec<String> {
        let mut all: Vec<String> = bench
            .machine
            .differences(&self.machine)
            .into_iter()
            .map(|d| format!("the baseline ran elsewhere: {d}"))
            .collect();
        for (what, before, now) in [
            ("spec", self.spec.as_str(), bench.spec.as_str()),
            ("faultbox", self.version.as_str(), env!("CARGO_PKG_VERSION")),
        ] {
            if before != now {
                all.push(format!(
                    "the baseline is of another {what}: {before}, now {now}"
                ));
            }
        }
        if let Some(trial) = bench.plan.trial {
            all.push(format!("this is a trial ({trial}), the baseline is none"));
        }
        for (name, what, _) in &self.subjects {
            let known = |f: &Finding| f.subject.name == *name && f.subject.what == *what;
            if !bench.subjects.iter().any(known) {
                all.push(format!("only the baseline has {name} ({what})"));
            }
        }
        for finding in &bench.subjects {
            let Subject { name, what, .. } = &finding.subject;
            match self
                .subjects
                .iter()
                .find(|(n, w, _)| n == name && w == what)
            {
                None => all.push(format!("the baseline has no {name} ({what})")),
                Some((.., before)) => {
                    let now = load(&subject(finding));
                    if *before != now {
                        all.push(format!(
                            "{name} was called otherwise in the baseline: {before}, now {now}"
                        ));
                    }
                }
            }
        }
        all
    }
}

/// How a subject of a document was called.
fn load(subject: &Value) -> Value {
    json!({"rate": subject["rate"], "connections": subject["connections"]})
}

/// What was added then and now, in nanoseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// "db.pg", or a workload's name.
    pub subject: String,
    /// Which quantile.
    pub quantile: Quantile,
    /// In the baseline.
    pub before: Interval,
    /// In this bench.
    pub now: Interval,
}

impl Change {
    /// Now minus then.
    pub fn difference(&self) -> Interval {
        self.now.minus(&self.before)
    }

    /// Can it be told from no change at all?
    pub fn is_real(&self) -> bool {
        self.difference().excludes(0.0)
    }

    fn json(&self) -> Value {
        json!({
            "subject": self.subject,
            "quantile": self.quantile.name(),
            "before_us": interval(Some(self.before), 1e-3),
            "now_us": interval(Some(self.now), 1e-3),
            "change_us": interval(Some(self.difference()), 1e-3),
            "real": self.is_real(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::analysis::tests::{subject, taken};
    use super::*;
    use crate::bench::plan::{Plan, Skipped};

    /// A bench of one subject whose proxy adds this.
    pub fn bench(added_us: u64) -> Bench {
        Bench {
            spec: "orders.star".to_owned(),
            seed: 7,
            duration_ms: 4800.0,
            plan: Plan {
                subjects: vec![subject()],
                trial: None,
            },
            machine: Machine {
                kernel: "Linux 6.18.5".to_owned(),
                arch: "x86_64".to_owned(),
                cpu: "Some CPU".to_owned(),
                cores: 2,
                governor: None,
                load: 0.5,
                steal: 0.0,
            },
            subjects: vec![Finding::of(subject(), taken(12, added_us), 7, 2)],
            skipped: vec![Skipped {
                name: "api.raw".to_owned(),
                reason: "tcp has no request that every server answers".to_owned(),
            }],
            notes: vec![],
        }
    }

    #[test]
    fn a_later_bench_reads_what_an_earlier_one_wrote() {
        let before = Baseline::read(&render(&bench(100), &[], &[])).unwrap();
        let now = bench(400);
        let changes = before.changes(&now);
        // The maximum has no interval.
        assert_eq!(changes.len(), Quantile::ALL.len() - 1, "{changes:?}");
        for change in &changes {
            assert!(change.is_real(), "{change:?}");
            assert!(
                (change.difference().value - 300_000.0).abs() < 20_000.0,
                "{change:?}"
            );
        }
        assert_eq!(before.caveats(&now), [""; 0]);
        let same = before.changes(&bench(100));
        assert!(same.iter().all(|c| !c.is_real()), "{same:?}");
    }

    #[test]
    fn what_makes_a_comparison_worth_less_is_said() {
        let before = Baseline::read(&render(&bench(100), &[], &[])).unwrap();
        let mut now = bench(100);
        now.machine.cores = 64;
        now.subjects[0].subject.shape = Shape::Closed { callers: 8 };
        let caveats = before.caveats(&now).join("\n");
        assert!(caveats.contains("cores: 64, before 2"), "{caveats}");
        assert!(caveats.contains("was called otherwise"), "{caveats}");
        now.subjects[0].subject.what = "workload other".to_owned();
        now.spec = "other.star".to_owned();
        let caveats = before.caveats(&now).join("\n");
        for said in [
            "the baseline has no api.http",
            "only the baseline has api.http (GET /)",
            "another spec: orders.star, now other.star",
        ] {
            assert!(caveats.contains(said), "{caveats}");
        }
    }

    #[test]
    fn a_baseline_of_another_version_is_compared_and_it_is_said() {
        let mut old = document(&bench(100), &[], &[]);
        old["faultbox"] = json!("0.0.1");
        let before = Baseline::read(&old.to_string()).unwrap();
        assert!(!before.changes(&bench(400)).is_empty());
        let now = env!("CARGO_PKG_VERSION");
        assert_eq!(
            before.caveats(&bench(100)),
            [format!(
                "the baseline is of another faultbox: 0.0.1, now {now}"
            )]
        );
    }

    #[test]
    fn what_is_no_bench_is_refused() {
        for (text, said) in [
            ("", "no JSON"),
            ("{\"schema\": 1}", "no document of"),
            ("{\"kind\": \"bench\", \"schema\": 2}", "version 2"),
            ("{\"kind\": \"bench\", \"schema\": 1}", "`machine`"),
        ] {
            let error = Baseline::read(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn figures_that_cannot_be_are_refused() {
        let good = document(&bench(100), &[], &[]);
        let spoilt = |spoil: &dyn Fn(&mut Value)| {
            let mut bad = good.clone();
            spoil(&mut bad);
            Baseline::read(&bad.to_string()).unwrap_err()
        };
        let p50 = "/subjects/0/quantiles/p50/added_us";
        let error = spoilt(&|v| v.pointer_mut(p50).unwrap()["low"] = json!(1e9));
        assert!(error.contains("is no interval"), "{error}");
        let error = spoilt(&|v| v.pointer_mut(p50).unwrap()["high"] = json!(1e308));
        assert!(error.contains("is no interval"), "{error}");
        let error = spoilt(&|v| v["subjects"][0]["log"] = json!("Tag=a,0,1,2,nonsense"));
        assert!(error.contains("`log`"), "{error}");
        let error = spoilt(&|v| v["trial"] = json!("null"));
        assert!(error.contains("--trial null"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let large = dir.path().join("large.json");
        File::create(&large).unwrap().set_len(LONGEST + 1).unwrap();
        assert_eq!(
            Baseline::open(&large).unwrap_err(),
            "it has more than 16 MiB"
        );
        for path in [dir.path(), Path::new("/dev/zero")] {
            assert_eq!(Baseline::open(path).unwrap_err(), "it is no regular file");
        }
    }

    #[test]
    fn without_a_call_there_is_no_number() {
        let mut bench = bench(0);
        let taken = super::super::drive::Taken {
            error: Some("every call failed".to_owned()),
            ..Default::default()
        };
        bench.subjects = vec![Finding::of(subject(), taken, 1, 2)];
        let document = document(&bench, &[], &[]);
        let p50 = &document["subjects"][0]["quantiles"]["p50"];
        assert_eq!(p50["base_us"], Value::Null);
        assert_eq!(document["subjects"][0]["error"], "every call failed");
    }
}
