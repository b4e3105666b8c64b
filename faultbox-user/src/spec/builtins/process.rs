//! `pause resume kill restart`: faults on a service's processes.

use starlark::collections::SmallMap;
use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;
use starlark::values::none::NoneType;

use crate::plan::Launch;
use crate::spec::context::running;
use crate::spec::convert::kind_of;
use crate::spec::host::ProcessFault;
use crate::spec::problem::{Place, Problem};
use crate::spec::values::service::ServiceValue;

fn act(
    eval: &Evaluator,
    name: &str,
    service: Value,
    what: ProcessFault,
) -> starlark::Result<NoneType> {
    let run = running(eval, name)?;
    let Some(service) = ServiceValue::from_value(service) else {
        return Err(Problem::new(
            Place::Positional(0),
            format!("`{name}` takes a service, not {}", kind_of(service)),
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
    run.blocking(|| run.host.process(&service.decl.name, what))
        .map_err(Problem::from)?;
    Ok(NoneType)
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// Stops every process of the service with SIGSTOP.
    fn pause<'v>(
        #[starlark(require = pos)] service: Value<'v>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        act(eval, "pause", service, ProcessFault::Pause)
    }

    /// Lets a paused service go on.
    fn resume<'v>(
        #[starlark(require = pos)] service: Value<'v>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        act(eval, "resume", service, ProcessFault::Resume)
    }

    /// Kills every process of the service with SIGKILL.
    fn kill<'v>(
        #[starlark(require = pos)] service: Option<Value<'v>>,
        #[starlark(kwargs)] keywords: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        match service {
            Some(service) if keywords.is_empty() => act(eval, "kill", service, ProcessFault::Kill),
            _ => Err(
                Problem::call("`kill` as what a system call does is not yet supported")
                    .help("kill(svc), in a test, kills every process of a service")
                    .label("not in this version")
                    .into(),
            ),
        }
    }

    /// Stops the service as at the end of a test, starts it again and waits until it is ready.
    fn restart<'v>(
        #[starlark(require = pos)] service: Value<'v>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        act(eval, "restart", service, ProcessFault::Restart)
    }
}

/// Adds them.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
