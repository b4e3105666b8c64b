//! `assert_true assert_eq assert_ne assert_in assert_raises`, and `halt`.

use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;
use starlark::values::none::NoneType;

use crate::spec::context::{count_assertion, running};
use crate::spec::locate::explain;
use crate::spec::params::{callable, given, text};
use crate::spec::problem::{Kind, Place, Problem};

/// The failure's headline: the user's message if there is one.
fn headline(message: Option<Value>, otherwise: impl FnOnce() -> String) -> Result<String, Problem> {
    match given(message) {
        Some(value) => {
            let said = match value.unpack_str() {
                Some(text) => text.to_owned(),
                None => value.to_str(),
            };
            Ok(if said.is_empty() { otherwise() } else { said })
        }
        None => Ok(otherwise()),
    }
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// Fails the test unless `cond` is true.
    fn assert_true<'v>(
        cond: Value<'v>,
        message: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        count_assertion(running(eval, "assert_true")?);
        if cond.to_bool() {
            return Ok(NoneType);
        }
        Err(
            Problem::assertion(headline(message, || "the condition does not hold".into())?)
                .compared("True".into(), cond.to_repr())
                .into(),
        )
    }

    /// Fails the test unless `actual == expected`; shows both.
    fn assert_eq<'v>(
        actual: Value<'v>,
        expected: Value<'v>,
        message: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        count_assertion(running(eval, "assert_eq")?);
        if actual.equals(expected)? {
            return Ok(NoneType);
        }
        let (expected, actual) = (expected.to_repr(), actual.to_repr());
        Err(
            Problem::assertion(headline(message, || format!("{actual} is not {expected}"))?)
                .compared(expected, actual)
                .into(),
        )
    }

    /// Fails the test if `actual == expected`.
    fn assert_ne<'v>(
        actual: Value<'v>,
        expected: Value<'v>,
        message: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        count_assertion(running(eval, "assert_ne")?);
        if !actual.equals(expected)? {
            return Ok(NoneType);
        }
        let actual = actual.to_repr();
        Err(
            Problem::assertion(headline(message, || format!("both are {actual}"))?)
                .compared(format!("anything but {}", expected.to_repr()), actual)
                .into(),
        )
    }

    /// Fails the test unless `item in container`.
    fn assert_in<'v>(
        item: Value<'v>,
        container: Value<'v>,
        message: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<NoneType> {
        count_assertion(running(eval, "assert_in")?);
        if container.is_in(item)? {
            return Ok(NoneType);
        }
        let (item, container) = (item.to_repr(), container.to_repr());
        Err(
            Problem::assertion(headline(message, || format!("{item} is not in it"))?)
                .compared(format!("something with {item} in it"), container)
                .into(),
        )
    }

    /// Fails the test unless calling `fn` raises; returns the error's message. With `contains`, the message must contain it.
    fn assert_raises<'v>(
        r#fn: Value<'v>,
        #[starlark(require = named)] contains: Option<Value<'v>>,
        #[starlark(require = named)] message: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<String> {
        count_assertion(running(eval, "assert_raises")?);
        let function = callable("fn", r#fn)?;
        let wanted = given(contains).map(|v| text("contains", v)).transpose()?;
        match eval.eval_function(function, &[], &[]) {
            Ok(value) => {
                Err(
                    Problem::assertion(headline(message, || "nothing was raised".into())?)
                        .compared("an error".into(), format!("returned {}", value.to_repr()))
                        .into(),
                )
            }
            Err(error) => {
                let (problem, _) = explain(&error);
                // What the running test could not do, and halt(), are no errors of the code under judgement.
                if matches!(problem.kind, Kind::Host(_) | Kind::Halt | Kind::Undecided) {
                    return Err(error);
                }
                match wanted {
                    Some(wanted) if !problem.message.contains(&wanted) => {
                        Err(Problem::assertion(headline(message, || {
                            "another error was raised".into()
                        })?)
                        .compared(
                            format!("an error that contains {wanted:?}"),
                            problem.message,
                        )
                        .into())
                    }
                    _ => Ok(problem.message),
                }
            }
        }
    }

    /// Ends the test with the outcome `halted`: it neither passed nor failed.
    fn halt<'v>(reason: Value<'v>, eval: &mut Evaluator<'v, '_, '_>) -> starlark::Result<NoneType> {
        running(eval, "halt")?;
        let reason = text("reason", reason)?;
        Err(Problem {
            kind: Kind::Halt,
            place: Place::Whole,
            ..Problem::call(reason)
        }
        .into())
    }
}

/// Adds them.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
