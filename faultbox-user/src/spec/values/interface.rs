//! `interface(...)`, and `svc.<name>`.

use std::fmt;

use allocative::Allocative;
use faultbox_contract::{ProtocolDoc, Transport};
use starlark::codemap::FileSpan;
use starlark::values::{
    Heap, NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, Value,
    starlark_value,
};

use super::step::Step;
use crate::plan::InterfaceDecl;
use crate::spec::context::missing_attribute;
use crate::spec::problem::{Problem, one_of};

/// An interface: bare as `interface()` makes it, or of a service.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct InterfaceValue {
    /// The service, once it belongs to one.
    pub service: Option<String>,
    /// The plan's part; without a proxy's address while it is bare.
    pub decl: InterfaceDecl,
    /// Was `host=` given?
    pub host_given: bool,
    /// Was a free port asked for?
    pub free_port: bool,
    /// `proxy=`.
    pub proxied: bool,
    /// What carries the protocol's messages.
    pub transport: Transport,
    /// The protocol's tables.
    pub doc: &'static ProtocolDoc,
    /// The call that made it.
    pub site: FileSpan,
}
starlark::starlark_simple_value!(InterfaceValue);

const ATTRIBUTES: &[&str] = &[
    "name",
    "protocol",
    "addr",
    "host",
    "port",
    "internal_addr",
    "proxy_addr",
];

impl InterfaceValue {
    /// "db.pg", or the bare name.
    pub fn path(&self) -> String {
        match &self.service {
            Some(service) => format!("{service}.{}", self.decl.name),
            None => self.decl.name.clone(),
        }
    }

    /// A step of this interface's protocol.
    pub fn step(&self, name: &str) -> Option<Step> {
        let step = self.doc.steps.iter().find(|s| s.name == name)?;
        Some(Step {
            service: self.service.clone()?,
            interface: self.decl.name.clone(),
            doc: self.doc,
            name: step.name,
        })
    }
}

impl fmt::Display for InterfaceValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interface({})", self.path())
    }
}

#[starlark_value(type = "interface")]
impl<'v> StarlarkValue<'v> for InterfaceValue {
    fn get_attr(&self, attribute: &str, heap: Heap<'v>) -> Option<Value<'v>> {
        let consumer = self.decl.consumer_addr();
        match attribute {
            "name" => return Some(heap.alloc(self.decl.name.as_str())),
            "protocol" => return Some(heap.alloc(self.decl.protocol)),
            "addr" => return Some(heap.alloc(consumer.to_string())),
            "host" => return Some(heap.alloc(consumer.ip().to_string())),
            "port" => return Some(heap.alloc(i32::from(consumer.port()))),
            "internal_addr" => return Some(heap.alloc(self.decl.addr.to_string())),
            "proxy_addr" => {
                return Some(match self.decl.proxy_addr {
                    Some(addr) => heap.alloc(addr.to_string()),
                    None => Value::new_none(),
                });
            }
            _ => {}
        }
        if let Some(step) = self.step(attribute) {
            return Some(heap.alloc(step));
        }
        let steps: Vec<&str> = self.doc.steps.iter().map(|s| s.name).collect();
        let problem = if self.service.is_none() && steps.contains(&attribute) {
            Problem::call(format!(
                "interface `{}` belongs to no service yet, so it has no step `{attribute}`",
                self.decl.name
            ))
            .help("give it to a service, and call the step on the service's interface")
        } else {
            let known: Vec<&str> = ATTRIBUTES.iter().copied().chain(steps).collect();
            Problem::call(format!(
                "interface {} ({}) has no attribute or step `{attribute}`",
                self.path(),
                self.doc.name
            ))
            .help(one_of(attribute, &known))
        };
        missing_attribute(attribute, problem);
        None
    }

    fn has_attr(&self, attribute: &str, _heap: Heap<'v>) -> bool {
        ATTRIBUTES.contains(&attribute) || self.step(attribute).is_some()
    }

    fn dir_attr(&self) -> Vec<String> {
        // Left empty on purpose: the problem noted by `get_attr` tells more than Starlark's own "did you mean".
        vec![]
    }
}
