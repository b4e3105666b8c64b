//! `fault fault_start fault_stop fault_all`: faults in force.

use std::sync::Arc;

use starlark::collections::SmallMap;
use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;
use starlark::values::none::NoneType;
use starlark::values::tuple::UnpackTuple;

use crate::plan::FaultSet;
use crate::spec::context::{RunState, Started, call_site, context, running};
use crate::spec::convert::kind_of;
use crate::spec::faults::{direct, targets};
use crate::spec::host::ArmId;
use crate::spec::params::{callable, list};
use crate::spec::problem::{Place, Problem, one_of};
use crate::spec::values::assumption::Assumption;
use crate::spec::values::handle::Handle;
use crate::spec::values::interface::InterfaceValue;
use crate::spec::values::service::ServiceValue;

/// Puts a fault in force.
pub fn arm(run: &RunState, fault: &FaultSet) -> Result<ArmId, Problem> {
    run.blocking(|| run.host.arm(fault)).map_err(Problem::from)
}

/// Puts faults in force, calls `function`, lifts them whatever it did, and returns what it returned.
pub fn under<'v>(
    eval: &mut Evaluator<'v, '_, '_>,
    run: &RunState,
    faults: &[Arc<FaultSet>],
    call: impl FnOnce(&mut Evaluator<'v, '_, '_>) -> starlark::Result<Value<'v>>,
) -> starlark::Result<Value<'v>> {
    let mut armed = vec![];
    let mut refused = None;
    for fault in faults {
        match arm(run, fault) {
            Ok(id) => armed.push(id),
            Err(problem) => {
                refused = Some(problem);
                break;
            }
        }
    }
    let result = match refused {
        None => call(eval),
        Some(problem) => Err(problem.into()),
    };
    for id in armed.into_iter().rev() {
        run.blocking(|| run.host.lift(id));
    }
    result
}

/// Positional values after the target, with their places.
fn rules_of<'v>(values: &[Value<'v>], from: usize) -> Vec<(Place, Value<'v>)> {
    values
        .iter()
        .enumerate()
        .map(|(i, v)| (Place::Positional(from + i), *v))
        .collect()
}

fn read_run<'v>(run: Option<Value<'v>>, what: &str) -> Result<Value<'v>, Problem> {
    match run {
        Some(value) => callable("run", value),
        None => Err(Problem::call(format!("`{what}` needs `run=`"))
            .help("give the function to call while the fault is in force: run=my_function. To start a fault without one, use fault_start()")),
    }
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// Calls `run` with a fault in force, and returns what it returns: `fault(db, write=deny("EIO"), run=create_order)`,
    /// `fault(db.pg, error(query="INSERT*"), run=fn)`, `fault(disk_error, run=fn)`.
    ///
    /// A service takes syscall keywords, an interface takes rules, an assumption takes neither. Faults stack: leaving the call removes
    /// exactly what it applied.
    fn fault<'v>(
        #[starlark(require = pos)] target: Value<'v>,
        #[starlark(args)] rules: UnpackTuple<Value<'v>>,
        #[starlark(require = named)] run: Option<Value<'v>>,
        #[starlark(kwargs)] syscalls: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let function = read_run(run, "fault")?;
        let state = running(eval, "fault")?;
        let site = call_site(eval).ok_or_else(|| Problem::call("must be called from a spec"))?;
        let keywords: Vec<_> = syscalls.into_iter().collect();
        let fault = direct(
            context(eval)?.world,
            &site,
            Place::Positional(0),
            target,
            &rules_of(&rules.items, 1),
            &keywords,
        )?;
        under(eval, state, &[fault], |eval| {
            eval.eval_function(function, &[], &[])
        })
    }

    /// Puts a fault in force and returns a handle with `.hits`; it stays until `fault_stop()` or the end of the test.
    fn fault_start<'v>(
        #[starlark(require = pos)] target: Value<'v>,
        #[starlark(args)] rules: UnpackTuple<Value<'v>>,
        #[starlark(kwargs)] syscalls: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Handle> {
        let state = running(eval, "fault_start")?;
        let site = call_site(eval).ok_or_else(|| Problem::call("must be called from a spec"))?;
        let keywords: Vec<_> = syscalls.into_iter().collect();
        let fault = direct(
            context(eval)?.world,
            &site,
            Place::Positional(0),
            target,
            &rules_of(&rules.items, 1),
            &keywords,
        )?;
        let started = Started {
            id: arm(state, &fault)?,
            targets: targets(&fault),
            name: fault.name.clone(),
        };
        state.started().push(started.clone());
        Ok(Handle {
            id: started.id,
            name: started.name,
            targets: started.targets,
        })
    }

    /// Lifts what `fault_start()` applied: one fault by its handle, or all that were started on a service, an interface, or from an
    /// assumption.
    fn fault_stop<'v>(
        #[starlark(require = pos)] handle_or_target: Value<'v>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        let state = running(eval, "fault_stop")?;
        let value = handle_or_target;
        let mut started = state.started();
        let chosen: Vec<ArmId> = if let Some(handle) = Handle::from_value(value) {
            if !started.iter().any(|s| s.id == handle.id) {
                return Err(Problem::new(
                    Place::Positional(0),
                    format!("fault {:?} has been stopped already", handle.name),
                )
                .into());
            }
            vec![handle.id]
        } else {
            let selects: Box<dyn Fn(&Started) -> bool> = if let Some(service) =
                ServiceValue::from_value(value)
            {
                let name = service.decl.name.clone();
                Box::new(move |s| s.targets.contains(&name))
            } else if let Some(interface) = InterfaceValue::from_value(value) {
                let path = interface.path();
                Box::new(move |s| s.targets.contains(&path))
            } else if let Some(assumption) = Assumption::from_value(value) {
                let name = assumption.fault.name.clone();
                Box::new(move |s| s.name == name)
            } else {
                return Err(Problem::new(
                        Place::Positional(0),
                        format!(
                            "`fault_stop` takes a handle, a service, an interface or an assumption, not {}",
                            kind_of(value)
                        ),
                    )
                    .into());
            };
            let chosen: Vec<_> = started
                .iter()
                .filter(|s| selects(s))
                .map(|s| s.id)
                .collect();
            if chosen.is_empty() {
                let names: Vec<&str> = started.iter().map(|s| s.name.as_str()).collect();
                let problem = Problem::new(
                    Place::Positional(0),
                    format!("no started fault is in force on {}", value.to_str()),
                );
                return Err(if names.is_empty() {
                    problem.help("none is: fault_start() starts one")
                } else {
                    problem.help(one_of("", &names))
                }
                .into());
            }
            chosen
        };
        started.retain(|s| !chosen.contains(&s.id));
        drop(started);
        for id in chosen {
            state.blocking(|| state.host.lift(id));
        }
        Ok(NoneType)
    }

    /// Calls `run` with several faults in force at once: `fault_all([disk_error, upstream_slow], run=fn)`, or the same keywords on
    /// several services: `fault_all([db, cache], write=deny("EIO"), run=fn)`.
    fn fault_all<'v>(
        #[starlark(require = pos)] targets: Value<'v>,
        #[starlark(args)] rules: UnpackTuple<Value<'v>>,
        #[starlark(require = named)] run: Option<Value<'v>>,
        #[starlark(kwargs)] syscalls: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let function = read_run(run, "fault_all")?;
        let state = running(eval, "fault_all")?;
        let site = call_site(eval).ok_or_else(|| Problem::call("must be called from a spec"))?;
        let world = context(eval)?.world;
        let keywords: Vec<_> = syscalls.into_iter().collect();
        let rules = rules_of(&rules.items, 1);
        let items = list("targets", targets)?;
        if items.is_empty() {
            return Err(Problem::param("targets", "the list of targets is empty").into());
        }
        let mut faults = vec![];
        for (i, target) in items.into_iter().enumerate() {
            let place = Place::Item("targets".into(), i);
            faults.push(direct(world, &site, place, target, &rules, &keywords)?);
        }
        under(eval, state, &faults, |eval| {
            eval.eval_function(function, &[], &[])
        })
    }
}

/// Adds them.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
