//! `partition(...)` and `packet_loss(...)`: packets between two services that do not arrive.

use std::sync::Arc;

use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::float::StarlarkFloat;
use starlark::values::{Value, ValueLike};

use crate::plan::{CutDecl, FaultPart, FaultSet, Launch};
use crate::spec::builtins::fault::under;
use crate::spec::context::{call_site, context, running, site_pos};
use crate::spec::convert::{int_of, kind_of};
use crate::spec::params::{callable, given, text};
use crate::spec::problem::{Problem, one_of};
use crate::spec::values::assumption::Assumption;
use crate::spec::values::service::ServiceValue;
use faultbox_contract::duration;

/// The values of `direction=`.
const DIRECTIONS: [&str; 3] = ["both", "a_to_b", "b_to_a"];
/// The values of `mode=`.
const MODES: [&str; 2] = ["drop", "reject"];

/// One of the two ends.
fn end<'v>(what: &str, name: &str, value: Value<'v>) -> Result<&'v ServiceValue, Problem> {
    ServiceValue::from_value(value).ok_or_else(|| {
        let problem = Problem::param(
            name,
            format!(
                "`{what}` parts two services, and `{name}` is {}",
                kind_of(value)
            ),
        );
        match crate::spec::values::interface::InterfaceValue::from_value(value) {
            Some(interface) => match &interface.service {
                Some(service) => problem.help(format!(
                    "give the service, `{service}`: every one of its interfaces is cut off"
                )),
                None => problem,
            },
            None => problem.help("such as partition(api, db)"),
        }
    })
}

fn both<'v>(
    what: &str,
    a: Value<'v>,
    b: Value<'v>,
) -> Result<(&'v ServiceValue, &'v ServiceValue), Problem> {
    let (a, b) = (end(what, "a", a)?, end(what, "b", b)?);
    if a.decl.name == b.decl.name {
        return Err(Problem::param(
            "b",
            format!("service {} cannot be parted from itself", a.decl.name),
        ));
    }
    if a.decl.launch == Launch::Remote && b.decl.launch == Launch::Remote {
        return Err(Problem::call(format!(
            "services {} and {} are both remote, so the packets between them do not pass here",
            a.decl.name, b.decl.name
        )));
    }
    Ok((a, b))
}

/// One of some words, or the first of them.
fn word(name: &str, value: Option<Value>, words: &[&'static str]) -> Result<&'static str, Problem> {
    let Some(value) = given(value) else {
        return Ok(words[0]);
    };
    let given = text(name, value)?;
    words.iter().find(|w| **w == given).copied().ok_or_else(|| {
        Problem::param(name, format!("`{name}`: there is no {given:?}")).help(one_of(&given, words))
    })
}

/// The flows as (sender, receiver), and what the fault's name says of them.
fn flows(a: &str, b: &str, direction: &str) -> (Vec<(String, String)>, String) {
    let flow = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    match direction {
        "a_to_b" => (vec![flow(a, b)], format!("{a}_to_{b}")),
        "b_to_a" => (vec![flow(b, a)], format!("{b}_to_{a}")),
        _ => (vec![flow(a, b), flow(b, a)], format!("{a}_{b}")),
    }
}

/// The fault as a value, or what `run` returns under it.
fn give<'v>(
    what: &str,
    name: String,
    rule: CutDecl,
    run: Option<Value<'v>>,
    eval: &mut Evaluator<'v, '_, '_>,
) -> starlark::Result<Value<'v>> {
    let site = call_site(eval).ok_or_else(|| Problem::call("must be called from a spec"))?;
    let fault = Arc::new(FaultSet {
        parts: vec![FaultPart::Cut {
            rule: Arc::new(rule),
            origin: name.clone(),
        }],
        name,
        description: String::new(),
        pos: site_pos(&site),
    });
    let Some(function) = given(run) else {
        context(eval)?.world.declared().faults.push(fault.clone());
        return Ok(eval.heap().alloc(Assumption { fault, site }));
    };
    let function = callable("run", function)?;
    let state = running(eval, what)?;
    under(eval, state, &[fault], |eval| {
        eval.eval_function(function, &[], &[])
    })
}

fn chance(value: Value) -> Result<f64, Problem> {
    let checked = if let Some(text) = value.unpack_str() {
        duration::parse_probability(text)
    } else if let Some(float) = value.downcast_ref::<StarlarkFloat>() {
        duration::check_probability(float.0)
    } else if let Some(int) = int_of(value) {
        duration::check_probability(int as f64)
    } else {
        Err(format!(
            "expected a float in 0..1 or \"20%\", got {}",
            kind_of(value)
        ))
    };
    checked.map_err(|e| Problem::param("probability", format!("`probability`: {e}")))
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// Cuts the network between two services: `partition(api, db)`, a fault for assumptions and matrices; with `run=`, in force for that
    /// call.
    ///
    /// Connections that exist and new ones alike, through a proxy or not, TCP and UDP; other services still reach both. With
    /// `direction="a_to_b"` packets go missing on their way from the first to the second only. `mode="drop"` is silent, as an unplugged
    /// cable is; with `mode="reject"` new connections are refused and existing ones reset. When it is lifted, connections that have
    /// not timed out go on.
    fn partition<'v>(
        a: Value<'v>,
        b: Value<'v>,
        #[starlark(require = named)] direction: Option<Value<'v>>,
        #[starlark(require = named)] mode: Option<Value<'v>>,
        #[starlark(require = named)] run: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let (a, b) = both("partition", a, b)?;
        let (direction, mode) = (
            word("direction", direction, &DIRECTIONS)?,
            word("mode", mode, &MODES)?,
        );
        let (a, b) = (&a.decl.name, &b.decl.name);
        let (flows, tail) = flows(a, b, direction);
        let reject = mode == "reject";
        let mut text = format!("partition({a}, {b}");
        let mut name = format!("partition_{tail}");
        if direction != DIRECTIONS[0] {
            text.push_str(&format!(", direction={direction:?}"));
        }
        if reject {
            text.push_str(", mode=\"reject\"");
            name.push_str("_reject");
        }
        let rule = CutDecl {
            ends: (a.clone(), b.clone()),
            flows,
            probability: None,
            reject,
            text: text + ")",
        };
        give("partition", name, rule, run, eval)
    }

    /// Loses packets between two services at random: `packet_loss(api, db, probability="5%")`, a fault for assumptions and matrices; with
    /// `run=`, in force for that call.
    ///
    /// The draws depend on the seed and on how many packets there were. TCP sends lost packets again, so it shows as latency.
    fn packet_loss<'v>(
        a: Value<'v>,
        b: Value<'v>,
        #[starlark(require = named)] probability: Value<'v>,
        #[starlark(require = named)] direction: Option<Value<'v>>,
        #[starlark(require = named)] run: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let (a, b) = both("packet_loss", a, b)?;
        let probability = chance(probability)?;
        let direction = word("direction", direction, &DIRECTIONS)?;
        let (a, b) = (&a.decl.name, &b.decl.name);
        let (flows, tail) = flows(a, b, direction);
        let mut text = format!("packet_loss({a}, {b}, probability={probability}");
        if direction != DIRECTIONS[0] {
            text.push_str(&format!(", direction={direction:?}"));
        }
        let rule = CutDecl {
            ends: (a.clone(), b.clone()),
            flows,
            probability: Some(probability),
            reject: false,
            text: text + ")",
        };
        give(
            "packet_loss",
            format!("packet_loss_{tail}_{probability}"),
            rule,
            run,
            eval,
        )
    }
}

/// Adds them.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
