//! What the place a report goes to can show.

use std::io::IsTerminal;

use crate::plan::Outcome;

/// How text is dressed. Reports are pure functions of a run and a style, so the same run renders the same everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// ANSI colours.
    pub colour: bool,
    /// Box-drawing characters; ASCII otherwise.
    pub unicode: bool,
    /// Columns for tables.
    pub width: usize,
    /// Are lines cut to `width`? Only on a terminal: a file keeps what it is given.
    pub cut: bool,
    /// What has already been shown in the same place while the run went on.
    pub seen: Seen,
}

/// Which tests the reader of a report has seen end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// None: the report goes elsewhere.
    Nothing,
    /// Those that did not pass: a terminal's bar lets them stand.
    NotPassed,
    /// Every one had its line.
    All,
}

impl Seen {
    /// Has a test that ended so been seen?
    pub fn shows(self, outcome: Outcome) -> bool {
        match self {
            Seen::Nothing => false,
            Seen::NotPassed => outcome != Outcome::Passed,
            Seen::All => true,
        }
    }

    /// What progress on standard error leaves for who reads standard output.
    fn of_streams(terminal: bool) -> Seen {
        use std::os::unix::fs::MetadataExt;
        let place = |fd| {
            let file = std::fs::metadata(format!("/proc/self/fd/{fd}")).ok()?;
            Some((file.dev(), file.ino()))
        };
        match (place(1), place(2)) {
            (Some(out), Some(err)) if out == err && terminal => Seen::NotPassed,
            (Some(out), Some(err)) if out == err => Seen::All,
            _ => Seen::Nothing,
        }
    }
}

/// What a terminal of unknown size is taken for, and what files are written for.
pub const DEFAULT_WIDTH: usize = 80;

impl Style {
    /// For files and pipes.
    pub const PLAIN: Style = Style {
        colour: false,
        unicode: false,
        width: DEFAULT_WIDTH,
        cut: false,
        seen: Seen::Nothing,
    };

    /// For standard output as it is.
    pub fn stdout() -> Style {
        let width = terminal_size::terminal_size_of(std::io::stdout());
        let terminal = std::io::stdout().is_terminal();
        Style {
            seen: Seen::of_streams(terminal),
            ..Style::detect(terminal, width)
        }
    }

    /// For standard error as it is.
    pub fn stderr() -> Style {
        let width = terminal_size::terminal_size_of(std::io::stderr());
        Style::detect(std::io::stderr().is_terminal(), width)
    }

    fn detect(
        terminal: bool,
        size: Option<(terminal_size::Width, terminal_size::Height)>,
    ) -> Style {
        if !terminal {
            return Style::PLAIN;
        }
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|t| t == "dumb");
        // The first that is set decides, as in setlocale(3).
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .filter_map(|name| std::env::var(name).ok())
            .find(|value| !value.is_empty())
            .unwrap_or_default()
            .to_ascii_lowercase();
        Style {
            // https://no-color.org: set and not empty, whatever its value.
            colour: !dumb && !set("NO_COLOR"),
            unicode: !dumb && (locale.contains("utf-8") || locale.contains("utf8")),
            // Narrower than this, tables have no room for a single cell.
            width: size.map_or(DEFAULT_WIDTH, |(w, _)| usize::from(w.0).max(40)),
            cut: true,
            seen: Seen::Nothing,
        }
    }

    fn sgr(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A heading.
    pub fn bold(&self, text: &str) -> String {
        self.sgr("1", text)
    }

    /// Of little weight.
    pub fn dim(&self, text: &str) -> String {
        self.sgr("2", text)
    }

    /// What is wrong.
    pub fn red(&self, text: &str) -> String {
        self.sgr("1;31", text)
    }

    /// An outcome's colour, on any text about it.
    pub fn outcome(&self, outcome: Outcome, text: &str) -> String {
        match outcome {
            Outcome::Passed => self.sgr("32", text),
            Outcome::Failed | Outcome::Error | Outcome::Timeout | Outcome::Bypassed => {
                self.sgr("1;31", text)
            }
            Outcome::Invalid | Outcome::Inconclusive | Outcome::Halted | Outcome::Interrupted => {
                self.sgr("33", text)
            }
        }
    }
}
