//! `tcp(...)`, `http(...)`, `ready(...)`, `cmd(...)`: when a service counts as ready.

use std::fmt;

use allocative::Allocative;
use starlark::values::{
    NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, starlark_value,
};

use crate::plan::Health;

/// A health check.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct HealthValue(pub Health);
starlark::starlark_simple_value!(HealthValue);

impl fmt::Display for HealthValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Health::Tcp { addr, .. } => write!(f, "tcp({addr:?})"),
            Health::Http { url, .. } => write!(f, "http({url:?})"),
            Health::Ready { interface, .. } => {
                write!(f, "ready({})", interface.as_deref().unwrap_or_default())
            }
            Health::Cmd { argv, .. } => write!(f, "cmd({argv:?})"),
        }
    }
}

#[starlark_value(type = "healthcheck")]
impl<'v> StarlarkValue<'v> for HealthValue {}
