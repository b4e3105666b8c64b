//! Errors of the command itself, and how they and a spec's diagnostics are shown.

use std::fmt;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};

use super::exit::Exit;
use crate::report::Style;
use crate::run::RunError;
use crate::spec::{Diagnostic, SpecError};

/// What stopped a command.
#[derive(Debug)]
pub struct Problem {
    /// What to show, in order.
    pub errors: Vec<Shown>,
    /// What the process ends with.
    pub exit: Exit,
}

/// One error, in the shape that miette draws.
#[derive(Debug)]
pub struct Shown {
    message: String,
    help: Option<String>,
    source: Option<(NamedSource<String>, LabeledSpan)>,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Shown {}

impl miette::Diagnostic for Shown {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let help = self.help.as_ref()?;
        Some(Box::new(help))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        let (source, _) = self.source.as_ref()?;
        Some(source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (_, label) = self.source.as_ref()?;
        Some(Box::new(std::iter::once(label.clone())))
    }
}

impl Problem {
    /// An error without a place.
    pub fn new(exit: Exit, message: impl Into<String>, help: Option<String>) -> Problem {
        Problem {
            errors: vec![Shown {
                message: message.into(),
                help,
                source: None,
            }],
            exit,
        }
    }

    /// Wrong use of the command.
    pub fn usage(message: impl Into<String>, help: impl Into<String>) -> Problem {
        Problem::new(Exit::Usage, message, Some(help.into()))
    }

    /// Something the environment refused.
    pub fn environment(message: impl Into<String>, help: impl Into<String>) -> Problem {
        Problem::new(Exit::Environment, message, Some(help.into()))
    }

    /// All errors as JSON, each with its place if it has one; lines and columns are 1-based, columns in characters.
    pub fn to_json(&self) -> Vec<serde_json::Value> {
        let place = |(source, label): &(NamedSource<String>, LabeledSpan)| {
            let before = &source.inner()[..label.offset()];
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            (source.name().to_owned(), line, column, label.len())
        };
        let one = |error: &Shown| {
            let place = error.source.as_ref().map(place);
            serde_json::json!({
                "message": error.message,
                "help": error.help,
                "file": place.as_ref().map(|p| &p.0),
                "line": place.as_ref().map(|p| p.1),
                "column": place.as_ref().map(|p| p.2),
                "bytes": place.as_ref().map(|p| p.3),
                "label": error.source.as_ref().and_then(|(_, l)| l.label()),
            })
        };
        self.errors.iter().map(one).collect()
    }

    /// All errors as text, each with its source and help.
    pub fn render(&self, style: &Style) -> String {
        let mut theme = match (style.unicode, style.colour) {
            (true, true) => GraphicalTheme::unicode(),
            (true, false) => GraphicalTheme::unicode_nocolor(),
            (false, true) => GraphicalTheme::ascii(),
            (false, false) => GraphicalTheme::none(),
        };
        theme.characters.error = "error:".into();
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_width(style.width)
            // In a file or a pipe a message stays on one line, so that it can be searched for.
            .with_wrap_lines(style.cut)
            .with_links(false)
            .with_context_lines(1);
        let mut out = String::new();
        for error in &self.errors {
            if !out.is_empty() {
                out.push('\n');
            }
            let mut text = String::new();
            if handler.render_report(&mut text, error).is_err() {
                // Drawing failed, not what it was to say.
                text = format!("error: {error}\n");
            }
            for line in text.trim_matches('\n').lines() {
                out.push_str(line.trim_end());
                out.push('\n');
            }
        }
        out
    }
}

impl From<SpecError> for Problem {
    fn from(error: SpecError) -> Problem {
        if error.diagnostics.is_empty() {
            return Problem::new(
                Exit::Internal,
                "the spec was refused without a reason",
                Some("this is a bug in faultbox; please report it with the spec".into()),
            );
        }
        Problem {
            errors: error.diagnostics.into_iter().map(Shown::from).collect(),
            exit: Exit::Usage,
        }
    }
}

impl From<Diagnostic> for Shown {
    fn from(diagnostic: Diagnostic) -> Shown {
        if diagnostic.source.is_empty() {
            return Shown {
                message: format!("{}: {}", diagnostic.file, diagnostic.message),
                help: diagnostic.help,
                source: None,
            };
        }
        let text = diagnostic.source.to_string();
        // A span that does not lie in the text would make the whole message vanish.
        let on_boundary = |mut at: usize| {
            at = at.min(text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let start = on_boundary(diagnostic.span.start);
        let end = on_boundary(diagnostic.span.end).max(start);
        let label = (!diagnostic.label.is_empty()).then_some(diagnostic.label);
        Shown {
            message: diagnostic.message,
            help: diagnostic.help,
            source: Some((
                NamedSource::new(diagnostic.file, text),
                LabeledSpan::new_primary_with_span(label, start..end),
            )),
        }
    }
}

impl From<RunError> for Problem {
    fn from(error: RunError) -> Problem {
        Problem::new(Exit::of_blame(error.blame), error.message, error.help)
    }
}
