//! `expect_success expect_error expect_error_within expect_hang`: ready-made expectations.

use std::time::Duration;

use starlark::environment::GlobalsBuilder;
use starlark::starlark_module;
use starlark::values::Value;

use crate::spec::convert::int_of;
use crate::spec::params::{given, int, span, text};
use crate::spec::values::expectation::Expectation;

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// The scenario's Response has `ok=True`.
    fn expect_success() -> starlark::Result<Expectation> {
        Ok(Expectation::Success)
    }

    /// The scenario's Response has `ok=False`, and this status and code if they are given.
    fn expect_error<'v>(
        #[starlark(require = named)] status: Option<Value<'v>>,
        #[starlark(require = named)] code: Option<Value<'v>>,
    ) -> starlark::Result<Expectation> {
        let code = match given(code) {
            None => None,
            Some(value) => Some(match int_of(value) {
                Some(number) => number.to_string(),
                None => text("code", value)?,
            }),
        };
        Ok(Expectation::Error {
            status: given(status)
                .map(|v| int("status", v, 0, i64::MAX))
                .transpose()?,
            code,
            within: None,
        })
    }

    /// The scenario's Response has `ok=False`, and came within `ms` milliseconds.
    fn expect_error_within<'v>(ms: Value<'v>) -> starlark::Result<Expectation> {
        let ms = int("ms", ms, 1, i64::MAX)?;
        Ok(Expectation::Error {
            status: None,
            code: None,
            within: Some(Duration::from_millis(ms.unsigned_abs())),
        })
    }

    /// The scenario is still running after this long; the test passes then, and fails if it ends before.
    fn expect_hang<'v>(after: Value<'v>) -> starlark::Result<Expectation> {
        Ok(Expectation::Hang {
            after: span("after", after)?,
        })
    }
}

/// Adds them.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
