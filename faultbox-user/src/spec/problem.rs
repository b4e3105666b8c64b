//! What a builtin raises, and where in the spec it points.

use starlark::codemap::FileSpan;

use super::host::HostError;
use crate::plan::report::Blame;

/// Which token of a call a problem is about.
#[derive(Debug, Clone)]
pub enum Place {
    /// The call as a whole: its function's name is underlined.
    Call,
    /// The value of the parameter of this name, whether it was given by keyword or by position.
    Param(String),
    /// The keyword itself.
    Keyword(String),
    /// The n-th positional argument.
    Positional(usize),
    /// The n-th element of the list, or the n-th key of the dict, given for a parameter.
    Item(String, usize),
    /// The attribute of this name, at the end of an expression.
    Attribute(String),
    /// The value of the n-th entry of the dict given for a parameter.
    Entry(String, usize),
    /// The whole of a call, from its function's name to its closing parenthesis.
    Whole,
    /// A token of another call: where a value was made, when it is refused where it is used.
    Elsewhere(FileSpan, Box<Place>),
}

/// What kind of end a problem is for a running test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The spec misuses the language.
    Misuse,
    /// What the spec asserts does not hold.
    Assertion,
    /// `halt()`.
    Halt,
    /// What was seen is not enough to tell whether an assertion holds.
    Undecided,
    /// The running test refused or could not do something.
    Host(Blame),
}

/// Something wrong, on its way through Starlark.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// A lower-case fragment.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// A word about the token, shown under it.
    pub label: &'static str,
    /// What it is about.
    pub place: Place,
    /// What kind of end it is.
    pub kind: Kind,
    /// Expected and actual, of a comparison.
    pub compared: Option<Box<(String, String)>>,
}

impl Problem {
    /// A misuse at `place`.
    pub fn new(place: Place, message: impl Into<String>) -> Problem {
        Problem {
            message: message.into(),
            help: None,
            label: "",
            place,
            kind: Kind::Misuse,
            compared: None,
        }
    }

    /// A misuse of a parameter's value.
    pub fn param(name: &str, message: impl Into<String>) -> Problem {
        Problem::new(Place::Param(name.to_owned()), message)
    }

    /// A misuse of a keyword.
    pub fn keyword(name: &str, message: impl Into<String>) -> Problem {
        Problem::new(Place::Keyword(name.to_owned()), message)
    }

    /// A misuse that the call as a whole makes.
    pub fn call(message: impl Into<String>) -> Problem {
        Problem::new(Place::Call, message)
    }

    /// An assertion that does not hold.
    pub fn assertion(message: impl Into<String>) -> Problem {
        Problem {
            kind: Kind::Assertion,
            place: Place::Whole,
            ..Problem::call(message)
        }
    }

    /// An assertion of which cannot be said whether it holds.
    pub fn undecided(message: impl Into<String>) -> Problem {
        Problem {
            kind: Kind::Undecided,
            place: Place::Whole,
            ..Problem::call(message)
        }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Problem {
        self.help = Some(help.into());
        self
    }

    /// The same with a word under the token.
    #[must_use]
    pub fn label(mut self, label: &'static str) -> Problem {
        self.label = label;
        self
    }

    /// The same with the two sides of a comparison.
    #[must_use]
    pub fn compared(mut self, expected: String, actual: String) -> Problem {
        self.compared = Some(Box::new((expected, actual)));
        self
    }

    /// The same, about a token of the call at `site`.
    #[must_use]
    pub fn at(mut self, site: &FileSpan) -> Problem {
        self.place = Place::Elsewhere(site.clone(), Box::new(self.place));
        self
    }
}

impl From<HostError> for Problem {
    fn from(e: HostError) -> Problem {
        Problem {
            help: e.help,
            kind: Kind::Host(e.blame),
            place: Place::Whole,
            ..Problem::call(e.message)
        }
    }
}

impl From<Problem> for starlark::Error {
    fn from(problem: Problem) -> starlark::Error {
        starlark::Error::new_other(problem)
    }
}

/// The problem that a Starlark error carries, if a builtin of ours raised it.
pub fn problem_of(error: &starlark::Error) -> Option<&Problem> {
    match error.kind() {
        starlark::ErrorKind::Other(e) | starlark::ErrorKind::Native(e) => e.downcast_ref(),
        _ => None,
    }
}

/// The hint for a name that is not one of `known`.
pub fn one_of(name: &str, known: &[&str]) -> String {
    let list = known.join(", ");
    match Some(name)
        .filter(|n| !n.is_empty())
        .and_then(|n| faultbox_contract::rule::nearest(n, known))
    {
        Some(best) => format!("did you mean `{best}`? They are {list}"),
        None => format!("they are {list}"),
    }
}
