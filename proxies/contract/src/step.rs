//! Steps: one operation that a spec sends, and the Response it returns.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::args::Arg;
use crate::doc::{Kind, ParamDoc, ProtocolDoc, StepDoc};
use crate::rule::{ArgError, nearest_hint};

/// A step whose arguments the protocol's table has accepted.
#[derive(Debug, Clone)]
pub struct CheckedStep {
    /// The table's entry.
    pub step: &'static StepDoc,
    /// The arguments given, in their kinds' shapes.
    pub args: Vec<(&'static str, Arg)>,
}

impl CheckedStep {
    /// The value of `name`, if it was given.
    pub fn get(&self, name: &str) -> Option<&Arg> {
        self.args.iter().find(|(n, _)| *n == name).map(|(_, a)| a)
    }

    /// The text of `name`, if it was given as text.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Arg::as_str)
    }

    /// Makes relative paths of files absolute: they are meant from `folder`, the spec's.
    pub fn resolve_files(&mut self, folder: &Path) {
        for (name, arg) in &mut self.args {
            let is_file = |p: &ParamDoc| p.name == *name && p.kind == Kind::File;
            if let Arg::Str(path) = arg
                && self.step.params.iter().any(is_file)
            {
                *path = folder.join(&*path).to_string_lossy().into_owned();
            }
        }
    }

    /// `timeout=`, or the default of 30 s that every step has.
    pub fn timeout(&self) -> Duration {
        self.get("timeout")
            .and_then(Arg::as_duration)
            .unwrap_or(Duration::from_secs(30))
    }
}

impl ProtocolDoc {
    /// Checks a step call against this protocol's tables.
    ///
    /// # Errors
    /// An unknown step or keyword (with the known ones), too many or doubled arguments, a missing one, or one of the wrong kind.
    pub fn check_step(
        &self,
        name: &str,
        positional: Vec<Arg>,
        keywords: Vec<(String, Arg)>,
    ) -> Result<CheckedStep, ArgError> {
        let refuse = |message: String, hint: String| ArgError {
            message,
            hint: Some(hint),
            arg: None,
        };
        let Some(step) = self.steps.iter().find(|s| s.name == name) else {
            let names: Vec<_> = self.steps.iter().map(|s| s.name).collect();
            return Err(refuse(
                format!("protocol {} has no step `{name}`", self.name),
                format!("its steps are {}", names.join(", ")),
            ));
        };
        let mut checked = CheckedStep { step, args: vec![] };
        let mut rest = vec![];
        // From where "args" stands on, positional arguments are the list's: the keywords behind it are keywords only.
        let own = match step.variadic {
            true => step.params.iter().take_while(|p| p.name != "args").count(),
            false => step.params.len(),
        };
        for (i, arg) in positional.into_iter().enumerate() {
            match step.params[..own].get(i) {
                Some(param) => {
                    let value = param
                        .kind
                        .check(arg)
                        .map_err(|e| ArgError::new(param.name, format!("`{}`: {e}", param.name)))?;
                    checked.args.push((param.name, value));
                }
                None if step.variadic => match arg {
                    Arg::Bytes(bytes) if std::str::from_utf8(&bytes).is_err() => {
                        return Err(refuse(
                            format!("`{name}` takes text, and these bytes are none"),
                            "bytes must be UTF-8 here".into(),
                        ));
                    }
                    arg => rest.push(arg.to_json()),
                },
                None => {
                    return Err(refuse(
                        format!(
                            "`{name}` takes at most {} positional arguments",
                            step.params.len()
                        ),
                        format!(
                            "they are {}",
                            step.params
                                .iter()
                                .map(|p| p.name)
                                .collect::<Vec<_>>()
                                .join(", ")
                        ),
                    ));
                }
            }
        }
        if !rest.is_empty() {
            checked.args.push(("args", Arg::Json(Value::Array(rest))));
        }
        for (keyword, arg) in keywords {
            let Some(param) = step.params.iter().find(|p| p.name == keyword) else {
                let known: Vec<_> = step.params.iter().map(|p| p.name).collect();
                return Err(ArgError::new(
                    &keyword,
                    format!("step `{name}` has no keyword `{keyword}`"),
                )
                .hint(nearest_hint(&keyword, &known)));
            };
            if checked.get(param.name).is_some() {
                return Err(ArgError::new(
                    &keyword,
                    format!("`{keyword}` was given twice"),
                ));
            }
            let value = param
                .kind
                .check(arg)
                .map_err(|e| ArgError::new(&keyword, format!("`{keyword}`: {e}")))?;
            if value != Arg::None {
                checked.args.push((param.name, value));
            }
        }
        if let Some(missing) = step
            .params
            .iter()
            .find(|p| p.required && checked.get(p.name).is_none())
        {
            return Err(refuse(
                format!("step `{name}` needs `{}=`: {}", missing.name, missing.doc),
                format!("it takes {}", missing.kind.describe()),
            ));
        }
        Ok(checked)
    }
}

/// What a step returns to the spec. A failed operation is an ordinary value with `ok == false`; only a misuse raises.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Response {
    /// The protocol says success (HTTP 200..399).
    pub ok: bool,
    /// HTTP status or gRPC code number; 0 elsewhere.
    pub status: i64,
    /// The protocol's own error code ("53100", "READONLY"); empty on success.
    pub code: String,
    /// The reply as text.
    pub body: String,
    /// The reply decoded: rows as a list of dicts, JSON, a reply value; null if there is nothing to decode.
    pub data: Value,
    /// Reply headers in order of arrival, names as the server wrote them.
    pub headers: Vec<(String, String)>,
    /// The error's message; empty on success.
    pub error: String,
    /// From the first byte sent to the reply complete.
    pub duration: Duration,
}

impl Response {
    /// A failure that never got a reply: a refused connection, a time-out. `code` is what the system or the client calls it.
    pub fn failure(code: impl Into<String>, error: impl Into<String>) -> Response {
        Response {
            code: code.into(),
            error: error.into(),
            ..Response::default()
        }
    }
}
