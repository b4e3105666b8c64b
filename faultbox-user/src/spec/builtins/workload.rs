//! `workload(...)`: a function of the spec under load, in a test or for `faultbox bench`.

use std::time::Duration;

use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::float::StarlarkFloat;
use starlark::values::{Value, ValueLike};

use super::scenario::nullary;
use crate::spec::context::{
    WorkloadEntry, context, declaring, register as keep, running, site_pos,
};
use crate::spec::convert::{int_of, kind_of};
use crate::spec::generate::generate;
use crate::spec::params::{given, int, is_callable, name as read_name, span};
use crate::spec::problem::{Place, Problem};
use crate::spec::values::interface::InterfaceValue;
use crate::spec::values::workload::WorkloadValue;
use crate::workload::{DEFAULT_CALLERS, LEAD, Load, MAX_CALLERS, MAX_RATE, Shape};

/// `rate=` and `connections=`.
fn shape(rate: Option<Value>, connections: Option<Value>) -> Result<Shape, Problem> {
    let connections = given(connections)
        .map(|v| int("connections", v, 1, MAX_CALLERS as i64))
        .transpose()?
        .map(|n| n as usize);
    match (given(rate), connections) {
        (Some(value), callers) => Ok(Shape::Open {
            rate: rate_of(value)?,
            callers: callers.unwrap_or(DEFAULT_CALLERS),
        }),
        (None, Some(callers)) => Ok(Shape::Closed { callers }),
        (None, None) => Err(
            Problem::call("`workload` needs `rate=` or `connections=`").help(
                "rate=500 calls 500 times a second whatever the answers do; connections=8 has eight callers, each of which waits for its answer",
            ),
        ),
    }
}

fn rate_of(value: Value) -> Result<f64, Problem> {
    let expected = "calls a second: a number above 0 and at most 1000000";
    let rate = match value.downcast_ref::<StarlarkFloat>() {
        Some(float) => float.0,
        None => int_of(value).map(|n| n as f64).ok_or_else(|| {
            Problem::param(
                "rate",
                format!("`rate`: expected {expected}, got {}", kind_of(value)),
            )
        })?,
    };
    if rate > 0.0 && rate <= MAX_RATE {
        Ok(rate)
    } else {
        Err(Problem::param(
            "rate",
            format!("`rate`: expected {expected}, got {value}"),
        ))
    }
}

fn duration_of(value: Value) -> Result<Duration, Problem> {
    let duration = span("duration", value)?;
    if duration.is_zero() {
        return Err(Problem::param(
            "duration",
            "`duration`: a load needs some time",
        ));
    }
    Ok(duration)
}

/// `interval=`.
fn interval(value: Value, duration: Duration) -> Result<Duration, Problem> {
    let interval = span("interval", value)?;
    let least = Load::shortest_interval(duration);
    if interval < least || interval > duration {
        return Err(Problem::param(
            "interval",
            format!(
                "`interval`: expected between {} and the duration",
                faultbox_contract::duration::show(least)
            ),
        )
        .help("a timeline has at most 1000 entries"));
    }
    Ok(interval)
}

/// `target=`: "service" and "interface".
fn target(value: Value) -> Result<(String, String), Problem> {
    let found = InterfaceValue::from_value(value)
        .and_then(|i| Some((i.service.clone()?, i.decl.name.clone())));
    found.ok_or_else(|| {
        Problem::param(
            "target",
            format!(
                "`target`: expected an interface of a service, got {}",
                kind_of(value)
            ),
        )
        .help("name it as it is faulted: target=api.http")
    })
}

/// The function to call, which stands at this position.
fn callee<'v>(value: Value<'v>, position: usize) -> Result<Value<'v>, Problem> {
    if !is_callable(value) {
        return Err(Problem::new(
            Place::Positional(position),
            format!("`workload` calls a function, not {}", kind_of(value)),
        )
        .help("pass the function itself, without parentheses, or a lambda"));
    }
    nullary("fn", value).map_err(|p| at(p, position))
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// Calls a function again and again and tells how long the calls took: `r = workload(create_order, rate=500, duration="10s")`, then
    /// `assert_true(r.p99 < 20)`.
    ///
    /// With `rate=` calls are begun at that rate whatever the answers do, by up to `connections=` callers at a time (64), and a call's latency
    /// counts from the moment it was due. With `connections=` alone there are so many callers, each of which calls again once it has been
    /// answered. A call fails if it returns a Response that is not ok or False, or raises an assertion or `fail()`: that is counted under `.errors`
    /// and does not end the test.
    ///
    /// The result has `.count .ok .failed .errors` (a dict: how many by code), `.p50 .p90 .p99 .p99_9 .max .mean` in milliseconds, `.rate` (answered a
    /// second), `.offered` (asked for), `.late .unsent .max_lag_ms .overloaded` (how well the generator kept the rate), `.began` (on the clock of events),
    /// `.duration_ms` and `.timeline`: a list of entries of `interval=` each, with `.start` (seconds since the load began), `.time` (on the clock of
    /// events), `.count .errors .p50 .p99 .max`.
    ///
    /// A function declared at the top level runs in parallel; a lambda made in a test shares that test's thread for all but what blocks.
    ///
    /// At the top level, with a name in front, it declares what `faultbox bench` puts on a spec:
    /// `workload("checkout", create_order, rate=200, target=api.http)`; `target=` names the one interface that it is about.
    fn workload<'v>(
        #[starlark(require = pos)] first: Value<'v>,
        #[starlark(require = pos)] second: Option<Value<'v>>,
        #[starlark(require = named)] rate: Option<Value<'v>>,
        #[starlark(require = named)] connections: Option<Value<'v>>,
        #[starlark(require = named)] duration: Option<Value<'v>>,
        #[starlark(require = named)] interval: Option<Value<'v>>,
        #[starlark(require = named)] target: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        if first.unpack_str().is_some() {
            let (world, site) = declaring(eval, "workload").map_err(|p| Problem {
                help: Some(
                    "inside a test, leave the name out: workload(fn, rate=, duration=)".into(),
                ),
                ..p
            })?;
            let name = read_name("first", first).map_err(|p| at(p, 0))?;
            let function = second.ok_or_else(|| {
                Problem::call(format!("workload `{name}` has no function")).help(
                    "the function follows its name: workload(\"checkout\", create_order, rate=200)",
                )
            })?;
            let function = callee(function, 1)?;
            if given(interval).is_some() {
                return Err(Problem::keyword(
                    "interval",
                    "`interval=` belongs to a workload in a test: a bench has no timeline",
                )
                .into());
            }
            let entry = WorkloadEntry {
                shape: shape(rate, connections)?,
                duration: given(duration).map(duration_of).transpose()?,
                target: given(target).map(self::target).transpose()?,
                pos: site_pos(&site),
                code: keep(eval, world, function),
                name,
            };
            let mut declared = world.declared();
            if let Some(other) = declared.workloads.iter().find(|w| w.name == entry.name) {
                return Err(Problem::new(
                    Place::Positional(0),
                    format!("there are two workloads called `{}`", entry.name),
                )
                .help(format!("the first one is declared at {}", other.pos))
                .label("names are unique")
                .into());
            }
            declared.workloads.push(entry);
            return Ok(Value::new_none());
        }
        let function = callee(first, 0)?;
        if second.is_some() {
            return Err(Problem::new(
                Place::Positional(1),
                "`workload` takes one function",
            )
            .help("several functions at the same time: parallel(lambda: workload(f, ...), lambda: workload(g, ...))")
            .into());
        }
        if given(target).is_some() {
            return Err(Problem::keyword(
                "target",
                "`target=` belongs to a workload that is declared for `faultbox bench`, with a name in front",
            )
            .into());
        }
        let shape = shape(rate, connections)?;
        let duration = given(duration).ok_or_else(|| {
            Problem::call("`workload` needs `duration=`")
                .help("for how long calls are begun: duration=\"10s\"")
        })?;
        let mut load = Load::new(shape, duration_of(duration)?);
        if let Some(value) = given(interval) {
            load.interval = self::interval(value, load.duration)?;
        }
        let state = running(eval, "workload").map_err(|p| Problem {
            help: Some(
                "call it inside a test, or name it for `faultbox bench`: workload(\"checkout\", create_order, rate=200)"
                    .into(),
            ),
            ..p
        })?;
        let world = context(eval)?.world;
        let began = (state.host.events().now() + LEAD).as_secs_f64();
        let summary = generate(eval, world, state, function, load)?;
        Ok(eval.heap().alloc(WorkloadValue { summary, began }))
    }
}

fn at(problem: Problem, position: usize) -> Problem {
    Problem {
        place: Place::Positional(position),
        ..problem
    }
}

/// Adds it.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
