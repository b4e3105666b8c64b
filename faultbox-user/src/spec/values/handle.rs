//! What `fault_start()` returns.

use std::collections::BTreeSet;
use std::fmt;

use allocative::Allocative;
use starlark::values::{
    Heap, NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, Value,
    starlark_value,
};

use crate::spec::context::{current_host, no_attribute};
use crate::spec::host::ArmId;

/// A fault that was started: `.hits` counts how often it has fired, also after it was stopped.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct Handle {
    /// Where it is armed.
    pub id: ArmId,
    /// The fault's name.
    pub name: String,
    /// What it targets.
    pub targets: BTreeSet<String>,
}
starlark::starlark_simple_value!(Handle);

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fault({:?})", self.name)
    }
}

#[starlark_value(type = "fault")]
impl<'v> StarlarkValue<'v> for Handle {
    fn get_attr(&self, attribute: &str, heap: Heap<'v>) -> Option<Value<'v>> {
        match attribute {
            "hits" => Some(heap.alloc(current_host().map_or(0, |h| h.hits(self.id)))),
            "name" => Some(heap.alloc(self.name.as_str())),
            _ => {
                no_attribute("a fault handle", attribute, &["hits", "name"]);
                None
            }
        }
    }

    fn has_attr(&self, attribute: &str, _heap: Heap<'v>) -> bool {
        matches!(attribute, "hits" | "name")
    }

    fn dir_attr(&self) -> Vec<String> {
        vec!["hits".into(), "name".into()]
    }
}
