//! Runs one test's code.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use faultbox_mocks::plan::Reply;
use serde_json::Value as Json;
use starlark::PrintHandler;
use starlark::codemap::FileSpan;
use starlark::environment::Module;
use starlark::eval::Evaluator;
use starlark::values::Value;
use starlark::values::structs::AllocStruct;

use super::builtins::fault::under;
use super::builtins::mock::returned;
use super::context::{Body, Context, FuncId, RunState, World, count_assertion, with_host};
use super::convert::{alloc_json, json_of};
use super::generate::generate_declared;
use super::host::Host;
use super::locate::{spot, verdict};
use super::params::is_callable;
use super::problem::{Place, Problem};
use super::values::expectation::Expectation;
use super::{BodyVerdict, Transcript};
use crate::plan::report::{Blame, Outcome, Reason};
use crate::sys::baton::Baton;
use crate::workload::Line;

/// How deep calls may nest. Starlark raises an error past it; the stack that this takes is well below the 8 MiB of a main thread.
const MAX_CALLS: usize = 200;

/// `print(...)` goes to the test's transcript.
pub struct Printer<'a>(pub &'a Transcript);

impl PrintHandler for Printer<'_> {
    fn println(&self, text: &str) -> starlark::Result<()> {
        self.0
            .prints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(text.to_owned());
        Ok(())
    }
}

/// Sets an evaluator up for a spec's code.
///
/// # Errors
/// Starlark refuses a limit.
pub fn prepare<'v, 'a, 'e>(
    eval: &mut Evaluator<'v, 'a, 'e>,
    context: &'a Context<'e>,
    printer: &'a dyn PrintHandler,
) -> starlark::Result<()>
where
    'e: 'a,
{
    // Branches of parallel() hold values that the collector of another evaluator would not see; and a test is short.
    eval.disable_gc();
    eval.set_print_handler(printer);
    eval.set_max_callstack_size(MAX_CALLS)
        .map_err(starlark::Error::new_other)?;
    eval.extra = Some(context);
    Ok(())
}

/// A function of the spec, as a value on the running test's heap.
fn function<'v>(
    world: &World,
    eval: &Evaluator<'v, '_, '_>,
    id: FuncId,
) -> Result<Value<'v>, Problem> {
    let function = world
        .function(id)
        .ok_or_else(|| Problem::call("the spec's function is gone"))?;
    Ok(eval.heap().access_owned_frozen_value(&function))
}

/// Something to do with an evaluator of the running test.
type Work<'w> =
    dyn for<'v, 'a, 'e> Fn(&mut Evaluator<'v, 'a, 'e>, &RunState) -> starlark::Result<Json> + 'w;

fn with_evaluator(
    world: &World,
    host: Arc<dyn Host>,
    transcript: &Transcript,
    work: &Work,
) -> starlark::Result<Json> {
    let state = RunState {
        host: host.clone(),
        transcript,
        baton: Baton::held(),
        started: Mutex::default(),
    };
    let context = Context {
        world,
        run: Some(&state),
    };
    let printer = Printer(transcript);
    let result = with_host(&host, || {
        Module::with_temp_heap(|module| {
            let mut eval = Evaluator::new(&module);
            prepare(&mut eval, &context, &printer)?;
            work(&mut eval, &state)
        })
    });
    // What was started and not stopped ends with the test.
    let left: Vec<_> = state.started().drain(..).collect();
    for fault in left.into_iter().rev() {
        host.lift(fault.id);
    }
    result
}

/// Runs a test.
pub fn run(
    world: &World,
    body: &Body,
    site: &FileSpan,
    host: Arc<dyn Host>,
    transcript: &Transcript,
) -> BodyVerdict {
    let began = Instant::now();
    let result = with_evaluator(world, host, transcript, &|eval, state| {
        if let Some(setup) = body.setup {
            let setup = function(world, eval, setup)?;
            eval.eval_function(setup, &[], &[])?;
        }
        let code = function(world, eval, body.code)?;
        let value = under(eval, state, &body.faults, |eval| {
            eval.eval_function(code, &[], &[])
        })?;
        if let Some((expect, place)) = &body.expect {
            let expect = function(world, eval, *expect)?;
            let judged = eval.eval_function(expect, &[value], &[])?;
            // It would judge nothing, and the test would pass whatever happened.
            if is_callable(judged) {
                let text = judged.to_str();
                return Err(Problem {
                    place: place.clone(),
                    ..Problem::call(format!("the expectation returned {text} and judged nothing"))
                }
                .help(match Expectation::from_value(judged) {
                    Some(_) => format!("write {text} without the lambda, or call it with what the lambda got: {text}(r)"),
                    None => "an expectation judges what it is called with: it asserts, or returns True or False".to_owned(),
                })
                .at(site)
                .into());
            }
            // A lambda that says True or False has asserted something, and one that says False fails like one that raises.
            if let Some(holds) = judged.unpack_bool() {
                if Expectation::from_value(expect).is_none() {
                    count_assertion(state);
                }
                if !holds {
                    return Err(Problem {
                        place: place.clone(),
                        ..Problem::assertion("the expectation returned False")
                    }
                    .compared("anything but False".into(), value.to_repr())
                    .at(site)
                    .into());
                }
            }
        }
        Ok(json_of(value).unwrap_or_else(|_| Json::from(value.to_str())))
    });
    let took = began.elapsed();
    match result {
        Ok(result) => BodyVerdict {
            outcome: Outcome::Passed,
            reason: None,
            result,
            took,
        },
        Err(error) => {
            let (outcome, mut reason) = verdict(&error);
            if reason.location.is_none() {
                // A ready-made expectation was called by nobody in the spec: where it was given is the nearest.
                let place = body
                    .expect
                    .as_ref()
                    .map_or(&Place::Call, |(_, place)| place);
                reason.location = Some(spot(place, site).location());
            }
            BodyVerdict {
                outcome,
                reason: Some(reason),
                result: Json::Null,
                took,
            }
        }
    }
}

/// Calls one function without judging anything.
///
/// # Errors
/// It raised.
// A Reason is large because it says much; it is made once per test at most.
#[allow(clippy::result_large_err)]
pub fn call(
    world: &World,
    id: FuncId,
    host: Arc<dyn Host>,
    transcript: &Transcript,
) -> Result<(), Reason> {
    with_evaluator(world, host, transcript, &|eval, _| {
        let code = function(world, eval, id)?;
        eval.eval_function(code, &[], &[])?;
        Ok(Json::Null)
    })
    .map(|_| ())
    .map_err(|error| {
        let (_, mut reason) = verdict(&error);
        if reason.message.is_empty() {
            reason = Reason::new("the function raised", Blame::Test);
        }
        reason
    })
}

/// Calls one function whenever it is a caller's turn, until the line is over.
///
/// # Errors
/// It cannot be called as it is.
// A Reason is large because it says much; it is made once per load at most.
#[allow(clippy::result_large_err)]
pub fn load(
    world: &World,
    id: FuncId,
    (line, callers): (&Line, usize),
    host: Arc<dyn Host>,
    transcript: &Transcript,
) -> Result<(), Reason> {
    let state = RunState {
        host,
        transcript,
        baton: Baton::held(),
        started: Mutex::default(),
    };
    world
        .function(id)
        .ok_or_else(|| Problem::call("the spec's function is gone").into())
        .and_then(|function| generate_declared(world, &state, &function, line, callers))
        .map_err(|error| verdict(&error).1)
}

/// Calls the function of a mock's route. There is no running test for it: it may run beside the test's own code, and only computes.
///
/// # Errors
/// It raised, or returned what is no reply.
pub fn answer(
    world: &World,
    id: FuncId,
    request: &Json,
    transcript: &Transcript,
) -> Result<Option<Reply>, String> {
    let context = Context { world, run: None };
    let printer = Printer(transcript);
    let result = Module::with_temp_heap(|module| {
        let mut eval = Evaluator::new(&module);
        prepare(&mut eval, &context, &printer)?;
        let code = function(world, &eval, id)?;
        let heap = eval.heap();
        let fields = request.as_object().into_iter().flatten();
        let request = heap.alloc(AllocStruct(
            fields.map(|(name, value)| (name.as_str(), alloc_json(heap, value))),
        ));
        let value = eval.eval_function(code, &[request], &[])?;
        starlark::Result::Ok(returned(value))
    });
    match result {
        Ok(reply) => reply,
        Err(error) => {
            let (_, reason) = verdict(&error);
            let place = reason
                .location
                .map(|l| format!(" ({})", l.pos))
                .unwrap_or_default();
            Err(format!("{}{place}", reason.message))
        }
    }
}
