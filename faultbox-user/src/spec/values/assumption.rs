//! `fault_assumption(...)`: a named fault.

use std::fmt;
use std::sync::Arc;

use allocative::Allocative;
use starlark::codemap::FileSpan;
use starlark::collections::StarlarkHasher;
use starlark::values::{
    NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, Value, starlark_value,
};

use crate::plan::FaultSet;

/// A named fault.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct Assumption {
    /// What it arms.
    pub fault: Arc<FaultSet>,
    /// The call that made it.
    pub site: FileSpan,
}
starlark::starlark_simple_value!(Assumption);

impl fmt::Display for Assumption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fault_assumption({:?})", self.fault.name)
    }
}

#[starlark_value(type = "fault_assumption")]
impl<'v> StarlarkValue<'v> for Assumption {
    // Names are unique, so an assumption is its name: a key of overrides= and exclude=.
    fn write_hash(&self, hasher: &mut StarlarkHasher) -> starlark::Result<()> {
        std::hash::Hash::hash(self.fault.name.as_str(), hasher);
        Ok(())
    }

    fn equals(&self, other: Value<'v>) -> starlark::Result<bool> {
        Ok(Assumption::from_value(other).is_some_and(|o| o.fault.name == self.fault.name))
    }

    fn get_attr(&self, attribute: &str, heap: starlark::values::Heap<'v>) -> Option<Value<'v>> {
        match attribute {
            "name" => Some(heap.alloc(self.fault.name.as_str())),
            "description" => Some(heap.alloc(self.fault.description.as_str())),
            _ => None,
        }
    }

    fn dir_attr(&self) -> Vec<String> {
        vec!["name".into(), "description".into()]
    }
}
