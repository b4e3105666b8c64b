//! `op(...)`: a named operation of a service.

use std::fmt;

use allocative::Allocative;
use starlark::values::{
    NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, starlark_value,
};

use crate::plan::OpDecl;

/// Some syscalls on some paths.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct OpValue(pub OpDecl);
starlark::starlark_simple_value!(OpValue);

impl fmt::Display for OpValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op({:?}", self.0.syscalls)?;
        if let Some(path) = &self.0.path {
            write!(f, ", path={path:?}")?;
        }
        f.write_str(")")
    }
}

#[starlark_value(type = "op")]
impl<'v> StarlarkValue<'v> for OpValue {}
