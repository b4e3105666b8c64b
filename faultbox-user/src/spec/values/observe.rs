//! `observe.stdout()`: a stream of a service whose lines become events.

use std::fmt;

use allocative::Allocative;
use starlark::values::{
    NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, starlark_value,
};

/// A stream: "stdout" or "stderr".
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct Stream(pub &'static str);
starlark::starlark_simple_value!(Stream);

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "observe.{}()", self.0)
    }
}

#[starlark_value(type = "stream")]
impl<'v> StarlarkValue<'v> for Stream {}
