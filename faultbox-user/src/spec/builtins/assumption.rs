//! `fault_assumption(...)`.

use std::sync::Arc;

use starlark::collections::SmallMap;
use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;

use crate::plan::FaultSet;
use crate::spec::context::{declaring, site_pos};
use crate::spec::convert::kind_of;
use crate::spec::faults::{Target, parts};
use crate::spec::params::{given, list, name as read_name, text};
use crate::spec::problem::{Place, Problem};
use crate::spec::values::assumption::Assumption;

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// Names a fault: `disk_error = fault_assumption("disk_error", target=db, write=deny("EIO"))`.
    ///
    /// A service as the target takes syscall keywords: its ops, families ("write"), any syscall. An interface takes `rules=[...]`.
    /// `faults=` composes others, all active together. `description` is free text.
    fn fault_assumption<'v>(
        name: Value<'v>,
        #[starlark(require = named)] target: Option<Value<'v>>,
        #[starlark(require = named)] rules: Option<Value<'v>>,
        #[starlark(require = named)] faults: Option<Value<'v>>,
        #[starlark(require = named)] monitors: Option<Value<'v>>,
        #[starlark(require = named)] description: Option<Value<'v>>,
        #[starlark(kwargs)] syscalls: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Assumption> {
        let (world, site) = declaring(eval, "fault_assumption")?;
        let name = read_name("name", name)?;
        if let Some(first) = world.declared().assumptions.get(&name) {
            return Err(Problem::param(
                "name",
                format!("there are two assumptions called `{name}`"),
            )
            .help(format!("the first one is made at {}", site_pos(first)))
            .label("names are unique")
            .into());
        }
        if given(monitors).is_some_and(|v| v.length().map_or(true, |n| n > 0)) {
            return Err(Problem::keyword("monitors", "`monitors=` is not yet supported").into());
        }
        let rules: Vec<_> = match given(rules) {
            Some(value) => list("rules", value)?
                .into_iter()
                .enumerate()
                .map(|(i, v)| (Place::Item("rules".into(), i), v))
                .collect(),
            None => vec![],
        };
        let keywords: Vec<_> = syscalls.into_iter().collect();
        let mut all = match given(target) {
            Some(value) => {
                let target = Target::read(Place::Param("target".into()), value)?;
                if rules.is_empty() && keywords.is_empty() {
                    let help = match target {
                        Target::Service(_) => "add a syscall keyword: write=deny(\"EIO\")",
                        Target::Interface(_) => "add rules=[error(...)]",
                    };
                    return Err(Problem::param(
                        "target",
                        format!(
                            "assumption `{name}` says nothing about what happens to its target"
                        ),
                    )
                    .help(help)
                    .into());
                }
                parts(world, &name, target, &rules, &keywords)?
            }
            None => {
                if let Some((key, _)) = keywords.first() {
                    return Err(Problem::keyword(key, format!("`{key}=` needs a target"))
                        .help("add target=svc")
                        .into());
                }
                if !rules.is_empty() {
                    return Err(Problem::keyword("rules", "`rules=` needs a target")
                        .help("add target=svc.<interface>")
                        .into());
                }
                vec![]
            }
        };
        if let Some(value) = given(faults) {
            let faults = list("faults", value)?;
            for (i, value) in faults.iter().copied().enumerate() {
                if faults[..i].iter().any(|earlier| earlier.ptr_eq(value)) {
                    return Err(Problem::new(
                        Place::Item("faults".into(), i),
                        "this assumption stands in the list already",
                    )
                    .help("a fault is in force once, however often it is named")
                    .into());
                }
                let Some(child) = Assumption::from_value(value) else {
                    return Err(Problem::new(
                        Place::Item("faults".into(), i),
                        format!("`faults`: expected assumptions, got {}", kind_of(value)),
                    )
                    .into());
                };
                all.extend(child.fault.parts.iter().cloned());
            }
        }
        if all.is_empty() {
            return Err(Problem::call(format!("assumption `{name}` is empty"))
                .help("give it a target with what happens to it, or faults=[...] to compose")
                .into());
        }
        let fault = Arc::new(FaultSet {
            name: name.clone(),
            parts: all,
            description: match given(description) {
                Some(value) => text("description", value)?,
                None => String::new(),
            },
            pos: site_pos(&site),
        });
        let mut declared = world.declared();
        declared.assumptions.insert(name, site.clone());
        declared.faults.push(fault.clone());
        Ok(Assumption { fault, site })
    }
}

/// Adds it.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
