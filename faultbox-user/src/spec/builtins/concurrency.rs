//! `parallel(...)`: several functions at the same time.

use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;
use starlark::values::list::AllocList;
use starlark::values::tuple::UnpackTuple;

use crate::plan::report::Blame;
use crate::spec::context::{Context, context, running, with_host};
use crate::spec::problem::{Kind, Place, Problem};
use crate::spec::run::prepare;
use crate::sys::baton::run_branches;

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// Calls the functions at the same time and returns their results in order: `a, b = parallel(create_order, pay)`.
    ///
    /// Whatever blocks (steps, sleep, arming) overlaps. If branches raise, all run to their end, then the first error in order is
    /// raised.
    fn parallel<'v>(
        #[starlark(args)] functions: UnpackTuple<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let state = running(eval, "parallel")?;
        let world = context(eval)?.world;
        for (i, function) in functions.items.iter().enumerate() {
            super::scenario::nullary("functions", *function).map_err(|p| Problem {
                place: Place::Positional(i),
                ..p
            })?;
        }
        let results = run_branches(
            &state.baton,
            eval.module(),
            &functions.items,
            |module, function| {
                with_host(&state.host, || {
                    let context = Context {
                        world,
                        run: Some(state),
                    };
                    let printer = crate::spec::run::Printer(state.transcript);
                    let mut eval = Evaluator::new(module);
                    prepare(&mut eval, &context, &printer)?;
                    eval.eval_function(function, &[], &[])
                })
            },
        )
        .map_err(|e| Problem {
            kind: Kind::Host(Blame::Environment),
            ..Problem::call(format!("no thread could be started: {e}"))
        })?;
        let mut values = vec![];
        for result in results {
            values.push(result?);
        }
        Ok(eval.heap().alloc(AllocList(values)))
    }
}

/// Adds it.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
