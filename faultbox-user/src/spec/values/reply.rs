//! `reply(...)` and `sequence([...])`: what a mock answers.

use std::fmt;

use allocative::Allocative;
use faultbox_contract::Arg;
use faultbox_mocks::plan::{Answers, Reply};
use starlark::codemap::FileSpan;
use starlark::values::{
    NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, starlark_value,
};

/// A reply, unchecked: what its keywords mean is the protocol's.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct ReplyValue {
    /// Its keywords.
    pub reply: Reply,
    /// The call that made it.
    pub site: Option<FileSpan>,
}
starlark::starlark_simple_value!(ReplyValue);

impl fmt::Display for ReplyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |arg: &Arg| match arg {
            Arg::Bool(true) => "True".to_owned(),
            Arg::Bool(false) => "False".to_owned(),
            Arg::None => "None".to_owned(),
            other => other.to_json().to_string(),
        };
        let args: Vec<String> = self
            .reply
            .args
            .iter()
            .map(|(name, arg)| format!("{name}={}", text(arg)))
            .collect();
        write!(f, "reply({})", args.join(", "))
    }
}

#[starlark_value(type = "reply")]
impl<'v> StarlarkValue<'v> for ReplyValue {}

/// Answers one after another.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct SequenceValue {
    /// What they are.
    pub answers: Answers,
    /// Where each was made, if it is a `reply()`.
    pub sites: Vec<Option<FileSpan>>,
}
starlark::starlark_simple_value!(SequenceValue);

impl fmt::Display for SequenceValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence of {}", self.answers.list.len())
    }
}

#[starlark_value(type = "sequence")]
impl<'v> StarlarkValue<'v> for SequenceValue {}
