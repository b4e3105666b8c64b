//! `deny(...)`, `delay(...)`, `error(...)`, …: what is to happen, before it is known to what.

use std::fmt;

use allocative::Allocative;
use faultbox_contract::Arg;
use starlark::codemap::FileSpan;
use starlark::values::{
    NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, starlark_value,
};

use crate::plan::Dest;

/// Where an action can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As the value of a syscall keyword: `write=deny("EIO")`.
    Syscall,
    /// As a rule on an interface: `rules=[error(query="INSERT*")]`.
    Protocol,
    /// As either: `delay`.
    Both,
}

/// One argument, as written.
#[derive(Debug, Clone)]
pub struct ActionArg {
    /// The keyword, or the parameter that a positional argument fills.
    pub name: String,
    /// Its value.
    pub value: Arg,
    /// What it selects as `dest=`, if it was a service, an interface, an address or a block.
    pub dest: Option<Dest>,
}

/// An action, unchecked: what it means depends on where it is put.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct Action {
    /// The builtin's name.
    pub name: &'static str,
    /// Where it can be used.
    pub level: Level,
    /// Its arguments, in the order written.
    pub args: Vec<ActionArg>,
    /// The call that made it.
    pub site: FileSpan,
}
starlark::starlark_simple_value!(Action);

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.name)?;
        for (i, arg) in self.args.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            let text = match &arg.value {
                Arg::Bool(b) => if *b { "True" } else { "False" }.into(),
                Arg::Service(name) => name.clone(),
                other => other.to_json().to_string(),
            };
            match arg.name.as_str() {
                // Given by position, and read by it.
                "errno" | "duration" => write!(f, "{comma}{text}")?,
                name => write!(f, "{comma}{name}={text}")?,
            }
        }
        f.write_str(")")
    }
}

#[starlark_value(type = "action")]
impl<'v> StarlarkValue<'v> for Action {}
