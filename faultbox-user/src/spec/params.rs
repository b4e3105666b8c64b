//! Reads the parameters of builtins: the right value, or a problem that points at the parameter.

use std::time::Duration;

use faultbox_contract::{Kind, doc::ParamDoc, duration};
use starlark::values::dict::DictRef;
use starlark::values::float::StarlarkFloat;
use starlark::values::list::ListRef;
use starlark::values::tuple::TupleRef;
use starlark::values::{Value, ValueLike};

use super::convert::{int_of, kind_of};
use super::problem::{Place, Problem};
use super::values::expectation::Expectation;

/// A parameter that was left out, or given as `None`, is absent.
pub fn given<'v>(value: Option<Value<'v>>) -> Option<Value<'v>> {
    value.filter(|v| !v.is_none())
}

fn wrong(name: &str, expected: &str, value: Value) -> Problem {
    Problem::param(
        name,
        format!("`{name}`: expected {expected}, got {}", kind_of(value)),
    )
}

/// A string.
///
/// # Errors
/// Anything else.
pub fn text(name: &str, value: Value) -> Result<String, Problem> {
    value
        .unpack_str()
        .map(str::to_owned)
        .ok_or_else(|| wrong(name, "string", value))
}

/// A name: a string that is not empty.
///
/// # Errors
/// Anything else.
pub fn name(name: &str, value: Value) -> Result<String, Problem> {
    let text = text(name, value)?;
    if text.is_empty() || text.starts_with('.') || text.chars().any(|c| c.is_control() || c == '/')
    {
        return Err(Problem::param(
            name,
            format!("`{name}`: {text:?} cannot be a name"),
        )
        .help("a name is not empty, begins with no dot, and has no `/` and no control characters: it names files and tests"));
    }
    Ok(text)
}

/// A truth value.
///
/// # Errors
/// Anything else.
pub fn boolean(name: &str, value: Value) -> Result<bool, Problem> {
    value
        .unpack_bool()
        .ok_or_else(|| wrong(name, "bool", value))
}

/// A duration: "500ms", or a number of seconds.
///
/// # Errors
/// Anything else.
pub fn span(name: &str, value: Value) -> Result<Duration, Problem> {
    let read = if let Some(text) = value.unpack_str() {
        duration::parse_duration(text)
    } else if let Some(float) = value.downcast_ref::<StarlarkFloat>() {
        duration::seconds(float.0)
    } else if let Some(int) = int_of(value) {
        duration::seconds(int as f64)
    } else {
        return Err(wrong(
            name,
            "duration (\"500ms\", \"2s\", or seconds)",
            value,
        ));
    };
    read.and_then(bounded)
        .map_err(|e| Problem::param(name, format!("`{name}`: {e}")))
}

/// The longest duration that a spec may name: a year is a mistake already, and deadlines must not overflow.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Refuses durations that no test can mean.
///
/// # Errors
/// More than a year.
pub fn bounded(duration: Duration) -> Result<Duration, String> {
    if duration > LONGEST {
        Err("a duration is at most 366 days".into())
    } else {
        Ok(duration)
    }
}

/// An integer within bounds, both included.
///
/// # Errors
/// Anything else.
pub fn int(name: &str, value: Value, low: i64, high: i64) -> Result<i64, Problem> {
    let kind = Kind::Int(low, high);
    match int_of(value) {
        Some(i) if (low..=high).contains(&i) => Ok(i),
        Some(i) => Err(Problem::param(
            name,
            format!("`{name}`: expected {}, got {i}", kind.describe()),
        )),
        None => Err(wrong(name, &kind.describe(), value)),
    }
}

/// The items of a list or tuple.
///
/// # Errors
/// Anything else.
pub fn list<'v>(name: &str, value: Value<'v>) -> Result<Vec<Value<'v>>, Problem> {
    if let Some(list) = ListRef::from_value(value) {
        Ok(list.iter().collect())
    } else if let Some(tuple) = TupleRef::from_value(value) {
        Ok(tuple.iter().collect())
    } else {
        let problem = wrong(name, "list", value);
        Err(match value.get_type() {
            // A string is the one iterable that may mean many items or one.
            "string" if name == "args" => {
                problem.help("one string for each argument: [\"--port\", \"80\"]")
            }
            "dict" | "int" | "float" | "bool" | "NoneType" => problem,
            _ => problem.help("put it into brackets: [...]"),
        })
    }
}

/// The entries of a dict.
///
/// # Errors
/// Anything else.
pub fn dict<'v>(name: &str, value: Value<'v>) -> Result<Vec<(Value<'v>, Value<'v>)>, Problem> {
    DictRef::from_value(value)
        .map(|d| d.iter().collect())
        .ok_or_else(|| wrong(name, "dict", value))
}

/// A list of strings.
///
/// # Errors
/// Anything else.
pub fn texts(name: &str, value: Value) -> Result<Vec<String>, Problem> {
    list(name, value)?
        .into_iter()
        .enumerate()
        .map(|(i, v)| {
            v.unpack_str().map(str::to_owned).ok_or_else(|| {
                Problem::new(
                    Place::Item(name.to_owned(), i),
                    format!("`{name}`: expected a list of strings, got {}", kind_of(v)),
                )
            })
        })
        .collect()
}

/// Something that can be called.
///
/// # Errors
/// Anything else.
pub fn callable<'v>(name: &str, value: Value<'v>) -> Result<Value<'v>, Problem> {
    if is_callable(value) {
        Ok(value)
    } else {
        Err(wrong(name, "function", value).help(format!(
            "pass the function itself, or a lambda: `{name}=my_function` without parentheses"
        )))
    }
}

/// Can it be called?
pub fn is_callable(value: Value) -> bool {
    value.get_type() == "function" || Expectation::from_value(value).is_some()
}

/// The keywords that a family of builtins takes, as a table: what is not in it is refused with the nearest that is.
///
/// # Errors
/// The keyword is not in the table.
pub fn known(call: &str, name: &str, table: &[ParamDoc]) -> Result<(), Problem> {
    if table.iter().any(|p| p.name == name) {
        return Ok(());
    }
    let names: Vec<&str> = table.iter().map(|p| p.name).collect();
    Err(
        Problem::keyword(name, format!("`{call}` has no keyword `{name}`"))
            .help(faultbox_contract::rule::nearest_hint(name, &names))
            .label("unknown keyword"),
    )
}
