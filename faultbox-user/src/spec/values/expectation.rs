//! `expect_success()`, `expect_error(...)`, …: callables that judge a result.

use std::fmt;
use std::time::Duration;

use allocative::Allocative;
use starlark::eval::{Arguments, Evaluator};
use starlark::values::{
    NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, Value, starlark_value,
};

use super::response::ResponseValue;
use crate::spec::context::{count_assertion, running};
use crate::spec::problem::Problem;

/// What is expected of a scenario's result.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub enum Expectation {
    /// The operation succeeded.
    Success,
    /// The operation failed, with this status and code if they are given, within this time if it is given.
    Error {
        /// `status=`.
        status: Option<i64>,
        /// `code=`.
        code: Option<String>,
        /// `ms=`.
        within: Option<Duration>,
    },
    /// The scenario is still running after this long.
    Hang {
        /// `after=`.
        after: Duration,
    },
}
starlark::starlark_simple_value!(Expectation);

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expectation::Success => f.write_str("expect_success()"),
            Expectation::Error {
                within: Some(within),
                ..
            } => write!(f, "expect_error_within(ms={})", within.as_millis()),
            Expectation::Error { status, code, .. } => {
                let mut parts = vec![];
                parts.extend(status.map(|s| format!("status={s}")));
                parts.extend(code.as_ref().map(|c| format!("code={c:?}")));
                write!(f, "expect_error({})", parts.join(", "))
            }
            Expectation::Hang { after } => write!(
                f,
                "expect_hang(after={:?})",
                faultbox_contract::duration::show(*after)
            ),
        }
    }
}

impl Expectation {
    fn judge(&self, result: Value) -> Result<(), Problem> {
        let fails = |expected: String| {
            Err(Problem::assertion(format!("{self} does not hold"))
                .compared(expected, result.to_repr()))
        };
        if let Expectation::Hang { after } = self {
            return fails(format!(
                "still running after {}",
                faultbox_contract::duration::show(*after)
            ));
        }
        let Some(response) = ResponseValue::from_value(result) else {
            return Err(Problem::assertion(format!(
                "{self} judges a Response, but the scenario returned {}",
                result.to_repr()
            ))
            .compared("a Response".into(), result.to_repr())
            .help(
                "return what the step returned, or give a function of your own as the expectation",
            ));
        };
        let r = &response.0;
        match self {
            Expectation::Success if r.ok => Ok(()),
            Expectation::Success => fails("ok=True".into()),
            Expectation::Error {
                status,
                code,
                within,
            } => {
                if r.ok {
                    return fails("ok=False".into());
                }
                if let Some(status) = status.filter(|s| *s != r.status) {
                    return fails(format!("status={status}"));
                }
                if let Some(code) = code.as_ref().filter(|c| **c != r.code) {
                    return fails(format!("code={code:?}"));
                }
                match within {
                    Some(within) if r.duration > *within => fails(format!(
                        "an error within {} ms, got one after {:.1} ms",
                        within.as_millis(),
                        r.duration.as_secs_f64() * 1e3
                    )),
                    _ => Ok(()),
                }
            }
            Expectation::Hang { .. } => Ok(()),
        }
    }
}

#[starlark_value(type = "expectation")]
impl<'v> StarlarkValue<'v> for Expectation {
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
        let result = args.positional1(eval.heap())?;
        let run = running(eval, &self.to_string())?;
        count_assertion(run);
        self.judge(result)?;
        Ok(Value::new_bool(true))
    }
}
