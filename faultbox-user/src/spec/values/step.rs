//! `db.pg.query`: a step, ready to be called.

use std::fmt;

use allocative::Allocative;
use faultbox_contract::ProtocolDoc;
use starlark::eval::{Arguments, Evaluator};
use starlark::values::{
    NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, Value, starlark_value,
};

use super::response::ResponseValue;
use crate::spec::context::{context, running};
use crate::spec::convert::arg_of;
use crate::spec::problem::{Place, Problem};

/// One operation of an interface.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct Step {
    /// The service.
    pub service: String,
    /// Its interface.
    pub interface: String,
    /// The protocol's tables.
    pub doc: &'static ProtocolDoc,
    /// The step's name.
    pub name: &'static str,
}
starlark::starlark_simple_value!(Step);

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.service, self.interface, self.name)
    }
}

#[starlark_value(type = "function")]
impl<'v> StarlarkValue<'v> for Step {
    fn name_for_call_stack(&self, _me: Value<'v>) -> String {
        self.to_string()
    }

    fn invoke(
        &self,
        _me: Value<'v>,
        args: &Arguments<'v, '_>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        let run = running(eval, &self.to_string())?;
        let heap = eval.heap();
        let mut positional = vec![];
        for (i, value) in args.positions(heap)?.enumerate() {
            positional.push(arg_of(value).map_err(|e| Problem::new(Place::Positional(i), e))?);
        }
        let mut keywords = vec![];
        for (name, value) in args.names_map()? {
            let arg = arg_of(value)
                .map_err(|e| Problem::param(name.as_str(), format!("`{}`: {e}", name.as_str())))?;
            keywords.push((name.as_str().to_owned(), arg));
        }
        let named: Vec<String> = keywords.iter().map(|(n, _)| n.clone()).collect();
        let mut call = self
            .doc
            .check_step(self.name, positional, keywords)
            .map_err(|e| {
                let place = match &e.arg {
                    None => Place::Call,
                    // An unknown keyword is wrong by its name, a known one by its value.
                    Some(arg) if !named.contains(arg) => position(self.doc, self.name, arg),
                    Some(arg) if e.message.contains("has no keyword") => {
                        Place::Keyword(arg.clone())
                    }
                    Some(arg) => Place::Param(arg.clone()),
                };
                Problem {
                    help: e.hint,
                    ..Problem::new(place, e.message)
                }
            })?;
        call.resolve_files(&context(eval)?.world.folder);
        let response = run
            .blocking(|| run.host.step(&self.service, &self.interface, call))
            .map_err(Problem::from)?;
        crate::workload::heard(&response);
        Ok(heap.alloc(ResponseValue(response)))
    }
}

/// The place of an argument that was given by position.
fn position(doc: &ProtocolDoc, step: &str, arg: &str) -> Place {
    doc.steps
        .iter()
        .find(|s| s.name == step)
        .and_then(|s| s.params.iter().position(|p| p.name == arg))
        .map_or(Place::Call, Place::Positional)
}
