//! `sleep(d)`.

use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;
use starlark::values::none::NoneType;

use crate::spec::context::running;
use crate::spec::params::span;

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// Waits: `sleep("200ms")`, or a number of seconds.
    fn sleep<'v>(
        #[starlark(require = pos)] duration: Value<'v>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        let run = running(eval, "sleep")?;
        let duration = span("duration", duration)?;
        run.blocking(|| std::thread::sleep(duration));
        Ok(NoneType)
    }
}

/// Adds it.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
