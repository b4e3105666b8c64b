//! `faultbox check`: load and plan; no process is started, no port bound.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::args::{CheckArgs, Format};
use super::exit::Exit;
use super::problem::Problem;
use super::{load, output, test};
use crate::plan::{Launch, ServiceDecl};
use crate::report::{MatrixLayout, text};
use crate::spec::{LoadedSpec, WorkloadDecl};

/// Runs the command.
///
/// # Errors
/// What is wrong with the spec, or standard output.
pub fn run(args: &CheckArgs) -> Result<Exit, Problem> {
    let spec = args.spec.display().to_string();
    match (load(&args.spec), args.format) {
        (Ok(loaded), Format::Human) => output::stdout(&human(&spec, &loaded))?,
        (Ok(loaded), Format::Json) => output::stdout(&format!("{:#}\n", plan(&spec, &loaded)))?,
        (Err(problem), Format::Human) => return Err(problem),
        (Err(problem), Format::Json) => {
            let document = json!({
                "schema": 1,
                "spec": spec,
                "ok": false,
                "diagnostics": problem.to_json(),
            });
            output::stdout(&format!("{document:#}\n"))?;
            return Ok(problem.exit);
        }
    }
    Ok(Exit::Passed)
}

fn launch(service: &ServiceDecl) -> String {
    match &service.launch {
        Launch::Binary {
            resolved: Some(path),
            ..
        } => path.display().to_string(),
        Launch::Binary {
            written,
            resolved: None,
        } => format!("{written} (not found on this machine)"),
        Launch::Mock { .. } => "mock".to_owned(),
        Launch::Remote => "remote".to_owned(),
    }
}

fn human(spec: &str, loaded: &LoadedSpec) -> String {
    let services = &loaded.topology().services;
    let tests: Vec<_> = loaded.tests().iter().collect();
    let mut out = format!(
        "{spec}: ok, {}, {}\n",
        text::count(services.len() as u64, "service"),
        text::count(tests.len() as u64, "test"),
    );
    if !services.is_empty() {
        out.push_str("\nservices\n");
    }
    for service in services {
        let _ = writeln!(out, "  {}  {}", service.name, launch(service));
        for interface in &service.interfaces {
            let mediated = match interface.proxy_addr {
                Some(_) => "",
                None => ", not through a proxy",
            };
            let _ = writeln!(
                out,
                "    {}.{}  {}{mediated}",
                service.name, interface.name, interface.protocol
            );
        }
        if !service.depends_on.is_empty() {
            let _ = writeln!(out, "    after {}", service.depends_on.join(", "));
        }
    }
    for (i, matrix) in loaded.matrices().iter().enumerate() {
        let _ = writeln!(
            out,
            "\nmatrix {}: {} x {}{}\n  scenarios: {}\n  faults: {}",
            i + 1,
            text::count(matrix.scenarios.len() as u64, "scenario"),
            text::count(matrix.faults.len() as u64, "fault"),
            if matrix.baseline {
                ", with baseline"
            } else {
                ""
            },
            matrix.scenarios.join(", "),
            matrix.faults.join(", "),
        );
    }
    if !tests.is_empty() {
        out.push_str("\ntests\n");
        for line in test::names(&tests).lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
    let workloads = loaded.workloads();
    if !workloads.is_empty() {
        out.push_str("\nworkloads\n");
    }
    for workload in &workloads {
        let target = match &workload.target {
            Some((service, interface)) => format!(", on {service}.{interface}"),
            None => String::new(),
        };
        let _ = writeln!(out, "  {}  {}{target}", workload.name, workload.shape);
    }
    for note in loaded.notes() {
        let _ = write!(out, "\nnote: {note}\n");
    }
    out
}

fn plan(spec: &str, loaded: &LoadedSpec) -> Value {
    let service = |s: &std::sync::Arc<ServiceDecl>| {
        let interfaces: Vec<Value> = s
            .interfaces
            .iter()
            .map(|i| json!({"name": i.name, "protocol": i.protocol, "proxy": i.proxy_addr.is_some()}))
            .collect();
        let (written, resolved) = match &s.launch {
            Launch::Binary { written, resolved } => (Some(written), resolved.as_ref()),
            Launch::Mock { .. } | Launch::Remote => (None, None),
        };
        json!({
            "name": s.name,
            "binary": written,
            "resolved": resolved.map(|p| p.display().to_string()),
            "depends_on": s.depends_on,
            "interfaces": interfaces,
        })
    };
    let workload = |w: &WorkloadDecl| {
        json!({
            "name": w.name,
            "rate": w.shape.rate(),
            "connections": w.shape.callers(),
            "duration_ms": w.duration.map(|d| d.as_secs_f64() * 1e3),
            "target": w.target.as_ref().map(|(service, interface)| format!("{service}.{interface}")),
        })
    };
    let matrix = |m: &MatrixLayout| json!({"scenarios": m.scenarios, "faults": m.faults, "baseline": m.baseline});
    let services = &loaded.topology().services;
    json!({
        "schema": 1,
        "spec": spec,
        "ok": true,
        "diagnostics": [],
        "services": services.iter().map(service).collect::<Vec<_>>(),
        "matrices": loaded.matrices().iter().map(matrix).collect::<Vec<_>>(),
        "tests": loaded.tests().iter().map(test::describe).collect::<Vec<_>>(),
        "workloads": loaded.workloads().iter().map(workload).collect::<Vec<_>>(),
        "notes": loaded.notes(),
    })
}
