//! Calls a function of the spec as a load asks for: from several threads, each with an evaluator of its own.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use starlark::environment::Module;
use starlark::eval::Evaluator;
use starlark::values::{FrozenValue, OwnedFrozenValue, Value};

use super::context::{Context, RunState, World, with_host};
use super::locate::explain;
use super::problem::{Kind, Problem, problem_of};
use super::run::{Printer, prepare};
use super::values::response::ResponseValue;
use crate::plan::report::Blame;
use crate::sys::baton::{Baton, run_branches};
use crate::workload::{self, Alarm, Done, Line, Load, Once, Summary, Turns};

/// The stack of a caller: deep recursion ends at Starlark's own limit, well before this.
const CALLER_STACK: usize = 32 << 20;
/// Calls made on one heap before it is thrown away: no collector runs in a test.
const CALLS_PER_HEAP: usize = 256;
/// Characters of an error's message that tell its kind.
const KIND: usize = 120;

/// Puts a load on `function`. The caller holds the running test's baton.
///
/// A function that was declared at the top level of the spec runs truly in parallel; one that was made by a running test shares that test's
/// heap, and only what blocks (steps, sleep) overlaps.
///
/// # Errors
/// A misuse, `halt()`, or something that the running test refused: it ends the load, because it would be the same for every call.
pub(super) fn generate<'v>(
    eval: &Evaluator<'v, '_, '_>,
    world: &World,
    state: &RunState,
    function: Value<'v>,
    load: Load,
) -> starlark::Result<Summary> {
    let once = Once::new(load);
    let callers = load.callers();
    on(&once, |one| match function.unpack_frozen() {
        Some(function) => state.blocking(|| one.apart(world, state, function, callers)),
        None => one.together(eval, world, state, function, callers),
    })?;
    Ok(once.finish())
}

/// Calls a function that the spec has declared, outside of any test's code, whenever it is a caller's turn, until the line is over.
///
/// # Errors
/// As [`generate`]; the line is over then.
pub(super) fn generate_declared(
    world: &World,
    state: &RunState,
    function: &OwnedFrozenValue,
    line: &Line,
    callers: usize,
) -> starlark::Result<()> {
    on(line, |one| {
        Module::with_temp_heap(|module| {
            // The heap keeps alive what the function lives on.
            let value = module.heap().access_owned_frozen_value(function);
            match value.unpack_frozen() {
                Some(function) => one.apart(world, state, function, callers),
                None => Err(Problem::call("the spec's function is gone").into()),
            }
        })
    })
}

fn on(turns: &dyn Turns, drive: impl FnOnce(&One) -> starlark::Result<()>) -> starlark::Result<()> {
    let abort = Abort::default();
    let one = One {
        turns,
        abort: &abort,
    };
    drive(&one)?;
    match abort.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// The first error that ends the whole load.
#[derive(Default)]
struct Abort(Mutex<Option<starlark::Error>>);

impl Abort {
    fn set(&self, error: starlark::Error) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
    }
}

struct One<'a> {
    turns: &'a dyn Turns,
    abort: &'a Abort,
}

impl One<'_> {
    /// Every caller with a heap of its own.
    fn apart(
        &self,
        world: &World,
        state: &RunState,
        function: FrozenValue,
        callers: usize,
    ) -> starlark::Result<()> {
        std::thread::scope(|scope| {
            for i in 0..callers {
                let started = std::thread::Builder::new()
                    .name(format!("caller {i}"))
                    .stack_size(CALLER_STACK)
                    .spawn_scoped(scope, || self.caller(world, state, function));
                if let Err(e) = started {
                    self.turns.stop();
                    return Err(no_thread(&e));
                }
            }
            Ok(())
        })
    }

    fn caller(&self, world: &World, state: &RunState, function: FrozenValue) {
        // A baton of its own: it shares no heap with anybody.
        let own = RunState {
            host: state.host.clone(),
            transcript: state.transcript,
            baton: Baton::held(),
            started: Mutex::default(),
        };
        let _alarm = Alarm(self.turns);
        let _keeping = workload::keeping();
        let mut over = false;
        while !over {
            let ended = with_host(&own.host, || {
                Module::with_temp_heap(|module| {
                    let context = Context {
                        world,
                        run: Some(&own),
                    };
                    let printer = Printer(own.transcript);
                    let mut eval = Evaluator::new(&module);
                    prepare(&mut eval, &context, &printer)?;
                    let function = function.to_value();
                    let mut left = CALLS_PER_HEAP;
                    starlark::Result::Ok(self.calls(&own, &mut || {
                        left -= 1;
                        (self.call(&mut eval, function), left > 0)
                    }))
                })
            });
            over = ended.unwrap_or_else(|error| {
                self.abort.set(error);
                self.turns.stop();
                true
            });
        }
        // What a call started and did not stop ends with the load.
        let left: Vec<_> = own.started().drain(..).collect();
        for fault in left.into_iter().rev() {
            own.host.lift(fault.id);
        }
    }

    /// Makes calls until the load is over (true) or `call` wants no more (false).
    fn calls(&self, state: &RunState, call: &mut dyn FnMut() -> (Option<Done>, bool)) -> bool {
        loop {
            let Some(turn) = self.turns.next() else {
                return true;
            };
            if turn.due > Instant::now() {
                state.blocking(|| workload::sleep_until(turn.due));
            }
            let began = Instant::now();
            let (done, more) = call();
            match done {
                Some(done) => self.turns.record(&turn, began, Instant::now(), done),
                None => self.turns.stop(),
            }
            if !more {
                return false;
            }
        }
    }

    /// All callers on the heap of the test, one at a time but for what blocks.
    fn together<'v>(
        &self,
        eval: &Evaluator<'v, '_, '_>,
        world: &World,
        state: &RunState,
        function: Value<'v>,
        callers: usize,
    ) -> starlark::Result<()> {
        let functions = vec![function; callers];
        let ends = run_branches(
            &state.baton,
            eval.module(),
            &functions,
            |module, function| {
                with_host(&state.host, || {
                    let context = Context {
                        world,
                        run: Some(state),
                    };
                    let printer = Printer(state.transcript);
                    let mut eval = Evaluator::new(module);
                    prepare(&mut eval, &context, &printer)?;
                    let _keeping = workload::keeping();
                    self.calls(state, &mut || (self.call(&mut eval, function), true));
                    starlark::Result::Ok(())
                })
            },
        );
        ends.map_err(|e| no_thread(&e))?.into_iter().collect()
    }

    /// One call; `None` if what it raised ends the load.
    fn call<'v>(&self, eval: &mut Evaluator<'v, '_, '_>, function: Value<'v>) -> Option<Done> {
        workload::was_silence();
        let result = eval.eval_function(function, &[], &[]);
        let failed = |kind| match workload::was_silence() {
            true => Done::Unanswered(kind),
            false => Done::Failed(kind),
        };
        match result {
            Ok(value) => Some(match judge(value) {
                Some(kind) => failed(kind),
                None => Done::Ok,
            }),
            Err(error) => match raised(&error) {
                Some(kind) => Some(failed(kind)),
                None => {
                    self.abort.set(error);
                    None
                }
            },
        }
    }
}

fn no_thread(e: &std::io::Error) -> starlark::Error {
    Problem {
        kind: Kind::Host(Blame::Environment),
        ..Problem::call(format!("no thread could be started: {e}"))
            .help("ask for fewer `connections=`")
    }
    .into()
}

/// A call has failed if it returns a Response that is not ok, or False: by what kind of failure.
fn judge(value: Value) -> Option<String> {
    if let Some(ResponseValue(response)) = ResponseValue::from_value(value) {
        // It may be that of an earlier step.
        workload::heard(response);
        return match (response.ok, response.code.as_str(), response.status) {
            (true, ..) => None,
            (false, "", 0) => Some("error".to_owned()),
            (false, "", status) => Some(status.to_string()),
            (false, code, _) => Some(code.to_owned()),
        };
    }
    (value.unpack_bool() == Some(false)).then(|| "returned False".to_owned())
}

/// The kind of failure that an error is; `None` if it is none of the system under test.
fn raised(error: &starlark::Error) -> Option<String> {
    let (problem, _) = explain(error);
    let ours = problem_of(error).is_some();
    match problem.kind {
        Kind::Assertion => {}
        // Starlark's own: a field of an answer that is missing, a None where a number was expected.
        Kind::Misuse if !ours => {}
        _ => return None,
    }
    let line = problem.message.lines().next().unwrap_or_default();
    Some(line.chars().take(KIND).collect())
}
