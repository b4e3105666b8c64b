//! `calls(...)`, `assert_called(...)`: what mocks have been asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use starlark::collections::SmallMap;
use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;
use starlark::values::list::AllocList;

use super::events::{Filter, lost, observable_calls};
use super::names;
use crate::events::Event;
use crate::plan::ServiceDecl;
use crate::spec::context::{RunState, context, count_assertion, running};
use crate::spec::convert::kind_of;
use crate::spec::params::{given, int, span};
use crate::spec::problem::{Place, Problem};
use crate::spec::values::event::EventValue;
use crate::spec::values::interface::InterfaceValue;
use crate::spec::values::service::ServiceValue;

/// The type of the events.
pub const KIND: &str = "mock_call";
/// How many calls a failed assertion shows.
const SHOWN: usize = 20;

/// Whose calls are meant.
struct Target {
    mock: Arc<ServiceDecl>,
    interface: Option<String>,
}

impl Target {
    fn read(eval: &Evaluator, name: &str, value: Value) -> Result<Target, Problem> {
        let (service, interface) = if let Some(service) = ServiceValue::from_value(value) {
            (service.decl.name.clone(), None)
        } else if let Some(interface) = InterfaceValue::from_value(value)
            && let Some(service) = &interface.service
        {
            (service.clone(), Some(interface.decl.name.clone()))
        } else {
            return Err(Problem::new(
                Place::Positional(0),
                format!(
                    "`{name}` takes a mock or an interface of one, not {}",
                    kind_of(value)
                ),
            ));
        };
        let decl = context(eval)?.world.service(&service);
        let Some(mock) = decl.filter(|decl| names::is_mock(decl)) else {
            return Err(Problem::new(
                Place::Positional(0),
                format!("service {service} is no mock, so its calls are not known"),
            )
            .help("mock_service() declares one; of other services, events(type=\"proxy\") tells which rules have fired"));
        };
        Ok(Target { mock, interface })
    }

    /// Notes that the test depends on these calls, and checks what is asked of them.
    fn observe<'v>(
        &self,
        eval: &Evaluator<'v, '_, '_>,
        run: &RunState,
        filter: &Filter<'v>,
    ) -> Result<(), Problem> {
        observable_calls(eval, run, filter, &self.mock, self.interface.as_deref())
    }

    fn text(&self) -> String {
        match &self.interface {
            Some(interface) => format!("{}.{interface}", self.mock.name),
            None => self.mock.name.clone(),
        }
    }

    fn holds(&self, event: &Event) -> bool {
        event.kind == KIND
            && event.service.as_ref() == Some(&self.mock.name)
            && self
                .interface
                .as_ref()
                .is_none_or(|i| event.fields.get("interface").and_then(|v| v.as_str()) == Some(i))
    }
}

/// The calls so far that are meant.
fn find<'v>(
    eval: &mut Evaluator<'v, '_, '_>,
    run: &RunState,
    target: &Target,
    filter: &Filter<'v>,
) -> starlark::Result<Vec<Arc<Event>>> {
    let mut found = vec![];
    for event in run.host.events().since(0) {
        if target.holds(&event) && filter.matches(eval, &event)? {
            found.push(event);
        }
    }
    Ok(found)
}

fn counted(n: usize) -> String {
    match n {
        1 => "1 call".to_owned(),
        n => format!("{n} calls"),
    }
}

/// The calls, one a line.
fn listed(calls: &[Arc<Event>]) -> String {
    let skip = calls.len().saturating_sub(SHOWN);
    let mut lines: Vec<String> = calls[skip..]
        .iter()
        .map(|event| {
            let text = event.fields.get("text").and_then(|t| t.as_str());
            format!("\n  {}", text.unwrap_or("?"))
        })
        .collect();
    if skip > 0 {
        lines.insert(0, format!("\n  ({} earlier)", counted(skip)));
    }
    lines.concat()
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// The calls that a mock, or one interface of it, has had so far: `calls(payments.http, method="POST", path="/charges")`.
    ///
    /// Each is an event of type "mock_call". Filters are those of `events()`; a dict names some of a field's entries, as in
    /// `headers={"x-tenant": "a*"}`, `json={"amount": 5}`.
    fn calls<'v>(
        #[starlark(require = pos)] mock: Value<'v>,
        #[starlark(kwargs)] filters: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let run = running(eval, "calls")?;
        let target = Target::read(eval, "calls", mock)?;
        let filter = Filter::with_entries(filters)?;
        target.observe(eval, run, &filter)?;
        let found = find(eval, run, &target, &filter)?;
        lost(run, "what was called")?;
        let heap = eval.heap();
        Ok(heap.alloc(AllocList(
            found.into_iter().map(|event| heap.alloc(EventValue(event))),
        )))
    }

    /// Fails the test unless a mock was called: `assert_called(payments.http, method="POST", path="/charges", times=1)`. A failure shows
    /// what was called instead. Returns the calls.
    ///
    /// `times` is how often exactly (0: never); without it, at least once. `within` is how long it waits for that; with `times=0`, how long
    /// none must come. The other keywords are those of `calls()`.
    fn assert_called<'v>(
        #[starlark(require = pos)] mock: Value<'v>,
        #[starlark(require = named)] times: Option<Value<'v>>,
        #[starlark(require = named)] within: Option<Value<'v>>,
        #[starlark(kwargs)] filters: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let run = running(eval, "assert_called")?;
        count_assertion(run);
        let target = Target::read(eval, "assert_called", mock)?;
        let times = given(times)
            .map(|v| int("times", v, 0, i64::MAX))
            .transpose()?
            .map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let within = given(within).map_or(Ok(Duration::ZERO), |v| span("within", v))?;
        let filter = Filter::with_entries(filters)?;
        target.observe(eval, run, &filter)?;
        let deadline = Instant::now() + within;
        let (mut found, mut all, mut seen) = (vec![], vec![], 0);
        let (found, all) = loop {
            for event in run.host.events().since(seen) {
                seen = event.seq;
                if !target.holds(&event) {
                    continue;
                }
                if filter.matches(eval, &event)? {
                    found.push(event.clone());
                }
                all.push(event);
            }
            let settled = match times {
                Some(0) => !found.is_empty(),
                Some(n) => found.len() >= n,
                None => !found.is_empty(),
            };
            if settled || Instant::now() >= deadline {
                break (found, all);
            }
            // Calls come to the log when somebody looks, too: no longer than a moment between looks.
            let next = deadline.min(Instant::now() + Duration::from_millis(5));
            run.blocking(|| run.host.events().wait_past(seen, next));
        };
        let holds = match times {
            Some(n) => found.len() == n,
            None => !found.is_empty(),
        };
        if !holds || times.is_some() {
            lost(run, "how often it was called")?;
        }
        if !holds {
            let with = match filter.is_empty() {
                true => String::new(),
                false => format!(" with {}", filter.text()),
            };
            let expected = match times {
                Some(n) => format!("exactly {} of {}{with}", counted(n), target.text()),
                None => format!("a call of {}{with}", target.text()),
            };
            let actual = match (found.len(), all.len()) {
                (_, 0) => "no call at all".to_owned(),
                (0, n) => format!("none among {}:{}", counted(n), listed(&all)),
                (f, n) if f == n => format!("{}:{}", counted(n), listed(&all)),
                (f, n) => format!("{} of {}:{}", counted(f), n, listed(&all)),
            };
            return Err(Problem::assertion("the mock was called otherwise")
                .compared(expected, actual)
                .into());
        }
        let heap = eval.heap();
        Ok(heap.alloc(AllocList(
            found.into_iter().map(|event| heap.alloc(EventValue(event))),
        )))
    }
}

/// Adds them.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
