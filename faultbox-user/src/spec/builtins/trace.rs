//! `trace(...)`: every system call of a service, for as long as a function runs.

use std::sync::atomic::Ordering;

use faultbox_contract::rule::nearest_hint;
use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;
use starlark::values::list::AllocList;
use starlark::values::structs::AllocStruct;

use crate::events::Event;
use crate::plan::Launch;
use crate::spec::context::running;
use crate::spec::convert::kind_of;
use crate::spec::params::{callable, given, texts};
use crate::spec::problem::{Place, Problem};
use crate::spec::syscalls;
use crate::spec::values::event::EventValue;
use crate::spec::values::service::ServiceValue;

/// What seccomp denies never gets as far as the kernel's tracepoints; the supervisor's event stands for it.
fn is_call(event: &Event) -> bool {
    let field = |name: &str| event.fields.get(name).and_then(|v| v.as_str());
    match event.kind.as_str() {
        "call" => true,
        "syscall" => field("action") == Some("deny") && field("mechanism").is_none(),
        _ => false,
    }
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// Calls `run` and returns `struct(result, calls)`: what it returned, and every system call that the service made meanwhile, as events
    /// of type "call" with `.syscall .returned .errno .duration_us .pid .comm`. `syscalls=["fsync", "write"]` selects families or
    /// calls.
    ///
    /// Calls that a fault has denied are among them, as the events of type "syscall" that they are.
    ///
    /// `t = trace(db, syscalls=["fsync"], run=commit)` then `assert_true(len(t.calls) > 0)`. A call that was not recorded because there
    /// were too many at once makes the test inconclusive.
    fn trace<'v>(
        #[starlark(require = pos)] service: Value<'v>,
        #[starlark(require = named)] run: Value<'v>,
        #[starlark(require = named)] syscalls: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let function = callable("run", run)?;
        let state = running(eval, "trace")?;
        let Some(service) = ServiceValue::from_value(service) else {
            return Err(Problem::new(
                Place::Positional(0),
                format!("`trace` takes a service, not {}", kind_of(service)),
            )
            .into());
        };
        if service.decl.launch == Launch::Remote {
            return Err(Problem::new(
                Place::Positional(0),
                format!(
                    "service {} is remote, so its processes are out of reach",
                    service.decl.name
                ),
            )
            .into());
        }
        let mut wanted: Option<Vec<&'static str>> = None;
        if let Some(value) = given(syscalls) {
            let mut names = vec![];
            for (i, name) in texts("syscalls", value)?.into_iter().enumerate() {
                let found = syscalls::named(&name);
                if found.is_empty() {
                    let families: Vec<&str> = syscalls::FAMILIES.iter().map(|(n, _)| *n).collect();
                    return Err(Problem::new(
                        Place::Item("syscalls".into(), i),
                        format!("there is no system call {name:?}"),
                    )
                    .help(nearest_hint(&name, &families))
                    .into());
                }
                names.extend(found);
            }
            wanted = Some(names);
        }
        state.transcript.asked_events.store(true, Ordering::Relaxed);
        state.transcript.asked_calls.store(true, Ordering::Relaxed);
        let name = &service.decl.name;
        let from = state.host.events().last_seq();
        state
            .blocking(|| state.host.stream_calls(name, true))
            .map_err(Problem::from)?;
        let result = eval.eval_function(function, &[], &[]);
        state
            .blocking(|| state.host.stream_calls(name, false))
            .map_err(Problem::from)?;
        let result = result?;
        let selects = |syscall: Option<&str>| match (&wanted, syscall) {
            (None, _) => true,
            (Some(names), Some(syscall)) => names.contains(&syscall),
            (Some(_), None) => false,
        };
        let heap = eval.heap();
        let calls: Vec<Value<'v>> = state
            .host
            .events()
            .since(from)
            .filter(|e| e.service.as_deref() == Some(name.as_str()) && is_call(e))
            .filter(|e| selects(e.fields.get("syscall").and_then(|s| s.as_str())))
            .map(|e| heap.alloc(EventValue(e)))
            .collect();
        Ok(heap.alloc(AllocStruct([
            ("result", result),
            ("calls", heap.alloc(AllocList(calls))),
        ])))
    }
}

/// Adds it.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
