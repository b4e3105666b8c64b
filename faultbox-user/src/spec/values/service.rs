//! `service(...)`.

use std::fmt;
use std::sync::Arc;

use allocative::Allocative;
use starlark::collections::StarlarkHasher;
use starlark::values::{
    Heap, NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, Value,
    starlark_value,
};

use super::counts::Counts;
use super::interface::InterfaceValue;
use crate::plan::ServiceDecl;
use crate::spec::context::{current_host, missing_attribute};
use crate::spec::problem::{Problem, one_of};

/// A service: `.name`, `.pid`, `.syscalls()`, one attribute per interface, and the steps of its only (or its `default`) interface.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct ServiceValue {
    /// The plan's part.
    pub decl: Arc<ServiceDecl>,
    /// Its interfaces, in the order declared.
    pub interfaces: Vec<InterfaceValue>,
}
starlark::starlark_simple_value!(ServiceValue);

impl ServiceValue {
    fn default_interface(&self) -> Option<&InterfaceValue> {
        match self.interfaces.as_slice() {
            [only] => Some(only),
            all => all.iter().find(|i| i.decl.name == "default"),
        }
    }

    fn why_missing(&self, attribute: &str) -> Problem {
        let name = &self.decl.name;
        let interfaces: Vec<&str> = self
            .interfaces
            .iter()
            .map(|i| i.decl.name.as_str())
            .collect();
        let steps: Vec<&str> = self
            .default_interface()
            .map(|i| i.doc.steps.iter().map(|s| s.name).collect())
            .unwrap_or_default();
        let stepped = self
            .interfaces
            .iter()
            .find(|i| i.doc.steps.iter().any(|s| s.name == attribute));
        if let Some(interface) = stepped {
            return Problem::call(format!(
                "service {name} has several interfaces, so `{attribute}` is not clear"
            ))
            .help(format!(
                "name the interface: `{name}.{}.{attribute}(...)`",
                interface.decl.name
            ));
        }
        let known: Vec<&str> = ["name", "pid", "syscalls"]
            .into_iter()
            .chain(interfaces.iter().copied())
            .chain(steps)
            .collect();
        let has = if interfaces.is_empty() {
            "it has none".to_owned()
        } else {
            format!("it has {}", interfaces.join(", "))
        };
        let problem = Problem::call(format!(
            "service {name} has no interface `{attribute}`; {has}"
        ));
        match faultbox_contract::rule::nearest(attribute, &known) {
            Some(best) => problem.help(format!("did you mean `{best}`?")),
            None => problem.help(one_of(attribute, &known).replacen(
                "they are",
                "its attributes are",
                1,
            )),
        }
    }
}

impl fmt::Display for ServiceValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service({:?})", self.decl.name)
    }
}

#[starlark_value(type = "service")]
impl<'v> StarlarkValue<'v> for ServiceValue {
    fn get_attr(&self, attribute: &str, heap: Heap<'v>) -> Option<Value<'v>> {
        match attribute {
            "name" => return Some(heap.alloc(self.decl.name.as_str())),
            "pid" => {
                // While a module freezes, Starlark replaces an attribute of a frozen value by what it gets here; it must get nothing
                // before there is a process to ask about.
                let Some(host) = current_host() else {
                    missing_attribute(
                        attribute,
                        Problem::call(format!("`{}.pid` needs a running test", self.decl.name))
                            .help("read it inside a test function or a scenario"),
                    );
                    return None;
                };
                let pid = host.pid(&self.decl.name);
                return Some(pid.map_or(Value::new_none(), |pid| heap.alloc(pid)));
            }
            _ => {}
        }
        if let Some(interface) = self.interfaces.iter().find(|i| i.decl.name == attribute) {
            return Some(heap.alloc(interface.clone()));
        }
        if attribute == "syscalls" {
            let service = self.decl.name.clone();
            return Some(heap.alloc(Counts { service }));
        }
        if let Some(step) = self.default_interface().and_then(|i| i.step(attribute)) {
            return Some(heap.alloc(step));
        }
        missing_attribute(attribute, self.why_missing(attribute));
        None
    }

    fn has_attr(&self, attribute: &str, _heap: Heap<'v>) -> bool {
        matches!(attribute, "name" | "pid" | "syscalls")
            || self.interfaces.iter().any(|i| i.decl.name == attribute)
            || self
                .default_interface()
                .is_some_and(|i| i.step(attribute).is_some())
    }

    fn dir_attr(&self) -> Vec<String> {
        // Left empty on purpose: the problem noted by `get_attr` tells more than Starlark's own "did you mean".
        vec![]
    }

    fn write_hash(&self, hasher: &mut StarlarkHasher) -> starlark::Result<()> {
        std::hash::Hash::hash(self.decl.name.as_str(), hasher);
        Ok(())
    }

    fn equals(&self, other: Value<'v>) -> starlark::Result<bool> {
        Ok(ServiceValue::from_value(other).is_some_and(|o| o.decl.name == self.decl.name))
    }
}
