//! `svc.syscalls`: what a service has called, ready to be asked for.

use std::fmt;
use std::sync::atomic::Ordering;

use allocative::Allocative;
use serde_json::{Map, Value as Json, json};
use starlark::eval::{Arguments, Evaluator};
use starlark::values::{
    NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, Value, starlark_value,
};

use crate::plan::CallCount;
use crate::spec::context::running;
use crate::spec::convert::alloc_json;
use crate::spec::problem::Problem;

/// The method `syscalls` of a service: `{"write": {"count": 12, "errors": 0, "p50_us": 1.5, "p99_us": 12.0, "total_ms": 0.03}, …}`.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct Counts {
    /// The service.
    pub service: String,
}
starlark::starlark_simple_value!(Counts);

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.syscalls", self.service)
    }
}

#[starlark_value(type = "function")]
impl<'v> StarlarkValue<'v> for Counts {
    fn name_for_call_stack(&self, _me: Value<'v>) -> String {
        self.to_string()
    }

    fn invoke(
        &self,
        _me: Value<'v>,
        args: &Arguments<'v, '_>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Value<'v>> {
        args.no_named_args()?;
        args.no_positional_args(eval.heap())?;
        let run = running(eval, &self.to_string())?;
        run.transcript.asked_counts.store(true, Ordering::Relaxed);
        let calls = run
            .blocking(|| run.host.calls(&self.service))
            .map_err(Problem::from)?;
        Ok(alloc_json(eval.heap(), &shown(&calls)))
    }
}

fn shown(calls: &[CallCount]) -> Json {
    let entry = |call: &CallCount| {
        let fields = json!({
            "count": call.count,
            "errors": call.errors,
            "p50_us": call.quantile_ns(0.5) as f64 / 1e3,
            "p99_us": call.quantile_ns(0.99) as f64 / 1e3,
            "total_ms": call.total_ns as f64 / 1e6,
        });
        (call.name.clone(), fields)
    };
    Json::Object(calls.iter().map(entry).collect::<Map<_, _>>())
}
