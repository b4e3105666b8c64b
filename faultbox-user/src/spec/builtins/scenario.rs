//! `scenario fault_scenario test`: tests made of functions.

use std::sync::Arc;
use std::time::Duration;

use starlark::codemap::FileSpan;
use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;
use starlark::values::none::NoneType;

use crate::plan::{FaultSet, TestDecl, TestKind};
use crate::spec::context::{Body, TestEntry, World, declaring, register as keep, site_pos};
use crate::spec::convert::kind_of;
use crate::spec::params::{callable, given, list, name as read_name, span};
use crate::spec::problem::{Place, Problem};
use crate::spec::values::assumption::Assumption;
use crate::spec::values::expectation::Expectation;

/// How long a test may take unless it says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The name of a `def`; lambdas have none.
pub fn function_name(value: Value) -> Option<String> {
    // `name_for_call_stack` is not public; a def's repr is its name, with its module in front.
    let repr = value.to_repr();
    let name = repr.rsplit('.').next().unwrap_or(&repr);
    let identifier = !name.is_empty()
        && name.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    (identifier && name != "lambda").then(|| name.to_owned())
}

/// A function that can be called without arguments.
pub fn nullary<'v>(name: &str, value: Value<'v>) -> Result<Value<'v>, Problem> {
    let function = callable(name, value)?;
    match function.parameters_spec() {
        Some(spec) if !spec.can_fill_with_args(0, &[]) => Err(Problem::param(
            name,
            format!("`{name}`: the function must be callable without arguments"),
        )
        .help(format!("it takes ({})", spec.parameters_str()))),
        _ => Ok(function),
    }
}

/// A function that can be called with a result.
pub fn expectation<'v>(place: Place, value: Value<'v>) -> Result<Value<'v>, Problem> {
    let at = |p: Problem| Problem {
        place: place.clone(),
        ..p
    };
    let function = callable("expect", value).map_err(|p| {
        at(p).help("an expectation is a function of the result: lambda r: assert_eq(r.status, 429)")
    })?;
    match function.parameters_spec() {
        Some(spec) if !spec.can_fill_with_args(1, &[]) => Err(at(Problem::call(
            "an expectation must be callable with one argument, the result",
        ))
        .help(format!("it takes ({})", spec.parameters_str()))),
        _ => Ok(function),
    }
}

/// `expect_hang(after=)` is watched by the run, not called.
pub fn hang_of(value: Option<Value>) -> Option<Duration> {
    match value.and_then(Expectation::from_value) {
        Some(Expectation::Hang { after }) => Some(*after),
        _ => None,
    }
}

/// `timeout=`.
pub fn timeout(value: Option<Value>, hang: Option<Duration>) -> Result<Duration, Problem> {
    let timeout = given(value).map_or(Ok(DEFAULT_TIMEOUT), |v| span("timeout", v))?;
    if timeout.is_zero() {
        return Err(Problem::param(
            "timeout",
            "`timeout`: a test needs some time",
        ));
    }
    match hang {
        Some(hang) if hang >= timeout && value.is_some() => Err(Problem::param(
            "timeout",
            "the timeout ends the test before expect_hang(after=) could be judged",
        )),
        // Room enough for the hang to be seen.
        Some(hang) => Ok(timeout.max(hang + Duration::from_secs(5))),
        None => Ok(timeout),
    }
}

/// Adds a test; its name must be new.
pub fn declare(
    world: &World,
    place: Place,
    decl: TestDecl,
    body: Body,
    site: &FileSpan,
) -> Result<(), Problem> {
    let mut declared = world.declared();
    if let Some(first) = declared.tests.iter().find(|t| t.decl.name == decl.name) {
        return Err(
            Problem::new(place, format!("there are two tests called `{}`", decl.name))
                .help(format!("the first one is declared at {}", first.decl.pos))
                .label("names are unique"),
        );
    }
    declared.tests.push(TestEntry {
        decl,
        body,
        site: site.clone(),
    });
    Ok(())
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// Registers a function as a test under its own name, and returns it, so that matrices can cross it with faults.
    fn scenario<'v>(
        r#fn: Value<'v>,
        #[starlark(require = named)] timeout: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let (world, site) = declaring(eval, "scenario")?;
        let function = nullary("fn", r#fn)?;
        let name = function_name(function).ok_or_else(|| {
            Problem::param(
                "fn",
                "a scenario takes its name from its function, and this one has none",
            )
            .help("write `def create_order(): ...` and scenario(create_order)")
        })?;
        let body = Body {
            setup: None,
            code: keep(eval, world, function),
            faults: vec![],
            expect: None,
            hang: None,
        };
        let decl = TestDecl {
            name,
            kind: TestKind::Scenario,
            timeout: self::timeout(timeout, None)?,
            baseline: None,
            require_faults_fire: false,
            pos: site_pos(&site),
        };
        declare(world, Place::Positional(0), decl, body, &site)?;
        Ok(function)
    }

    /// One scenario under one or several assumptions, as a test: `fault_scenario("order_on_full_disk", scenario=create_order,
    /// faults=disk_full, expect=expect_error(code="53100"))`.
    fn fault_scenario<'v>(
        name: Value<'v>,
        #[starlark(require = named)] scenario: Value<'v>,
        #[starlark(require = named)] faults: Option<Value<'v>>,
        #[starlark(require = named)] expect: Option<Value<'v>>,
        #[starlark(require = named)] timeout: Option<Value<'v>>,
        #[starlark(require = named)] monitors: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        let (world, site) = declaring(eval, "fault_scenario")?;
        let name = read_name("name", name)?;
        let function = nullary("scenario", scenario)?;
        if given(monitors).is_some_and(|v| v.length().map_or(true, |n| n > 0)) {
            return Err(Problem::keyword("monitors", "`monitors=` is not yet supported").into());
        }
        let faults = match given(faults) {
            None => vec![],
            Some(value) => match Assumption::from_value(value) {
                Some(one) => vec![one.fault.clone()],
                None => assumptions("faults", value)?,
            },
        };
        let expect = given(expect)
            .map(|v| expectation(Place::Param("expect".into()), v))
            .transpose()?;
        let hang = hang_of(expect);
        let timeout = self::timeout(timeout, hang)?;
        let body = Body {
            setup: None,
            code: keep(eval, world, function),
            faults,
            expect: expect.map(|f| (keep(eval, world, f), Place::Param("expect".into()))),
            hang,
        };
        let decl = TestDecl {
            name,
            kind: TestKind::FaultScenario,
            timeout,
            baseline: None,
            require_faults_fire: false,
            pos: site_pos(&site),
        };
        declare(world, Place::Param("name".into()), decl, body, &site)?;
        Ok(NoneType)
    }

    /// A test by name: `setup` is called first, then `body`, and `expect` judges what `body` returned.
    fn test<'v>(
        name: Value<'v>,
        #[starlark(require = named)] body: Value<'v>,
        #[starlark(require = named)] setup: Option<Value<'v>>,
        #[starlark(require = named)] expect: Option<Value<'v>>,
        #[starlark(require = named)] timeout: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        let (world, site) = declaring(eval, "test")?;
        let name = read_name("name", name)?;
        let code = nullary("body", body)?;
        let setup = given(setup).map(|v| nullary("setup", v)).transpose()?;
        let expect = given(expect)
            .map(|v| expectation(Place::Param("expect".into()), v))
            .transpose()?;
        let hang = hang_of(expect);
        let timeout = self::timeout(timeout, hang)?;
        let body = Body {
            setup: setup.map(|f| keep(eval, world, f)),
            code: keep(eval, world, code),
            faults: vec![],
            expect: expect.map(|f| (keep(eval, world, f), Place::Param("expect".into()))),
            hang,
        };
        let decl = TestDecl {
            name,
            kind: TestKind::Function,
            timeout,
            baseline: None,
            require_faults_fire: false,
            pos: site_pos(&site),
        };
        declare(world, Place::Param("name".into()), decl, body, &site)?;
        Ok(NoneType)
    }
}

/// A list of assumptions.
pub fn assumptions(name: &str, value: Value) -> Result<Vec<Arc<FaultSet>>, Problem> {
    list(name, value)?
        .into_iter()
        .enumerate()
        .map(|(i, v)| {
            Assumption::from_value(v)
                .map(|a| a.fault.clone())
                .ok_or_else(|| {
                    Problem::new(
                        Place::Item(name.to_owned(), i),
                        format!("`{name}`: expected assumptions, got {}", kind_of(v)),
                    )
                    .help("make one with fault_assumption(...)")
                })
        })
        .collect()
}

/// Adds them.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
