//! `faultbox protocols`: what can be matched, faulted and sent, straight from the tables that the language checks against.

use std::fmt::Write as _;

use faultbox_contract::doc::COMMON_PARAMS;
use faultbox_contract::rule::nearest_hint;
use faultbox_contract::{ActionDoc, ParamDoc, ProtocolDoc, StepDoc};

use super::args::ProtocolsArgs;
use super::exit::Exit;
use super::output;
use super::problem::Problem;
use crate::report::{Style, text};

/// Runs the command.
///
/// # Errors
/// An unknown protocol, or standard output.
pub fn run(args: &ProtocolsArgs) -> Result<Exit, Problem> {
    let docs = docs();
    let width = Style::stdout().width;
    let page = match &args.name {
        None => overview(&docs, width),
        Some(name) => match find(&docs, name) {
            Some(doc) => page(doc, width),
            None => {
                let names: Vec<_> = docs.iter().map(|d| d.name).collect();
                let hint = nearest_hint(name, &names).replace("It takes", "The protocols are");
                let hint = match hint.strip_prefix("it takes") {
                    Some(list) => format!("the protocols are{list}"),
                    None => hint,
                };
                return Err(Problem::usage(
                    format!("there is no protocol `{name}`"),
                    hint,
                ));
            }
        },
    };
    output::stdout(&page)?;
    Ok(Exit::Passed)
}

/// The tables of every protocol in the registry.
fn docs() -> Vec<&'static ProtocolDoc> {
    faultbox_fleet::all().iter().map(|p| p.doc()).collect()
}

/// The protocol that a spec means by `name`.
fn find(docs: &[&'static ProtocolDoc], name: &str) -> Option<&'static ProtocolDoc> {
    let name = name.to_lowercase();
    docs.iter()
        .find(|d| d.name == name || d.aliases.contains(&name.as_str()))
        .copied()
}

/// Every protocol in a few lines.
pub fn overview(docs: &[&ProtocolDoc], width: usize) -> String {
    let mut page = Page {
        out: String::new(),
        width,
    };
    for doc in docs {
        page.heading(doc);
        let names = |params: &[ParamDoc]| join(params.iter().map(|p| p.name));
        page.entry("matchers", &names(doc.matchers));
        page.entry("actions", &join(doc.actions.iter().map(|a| a.name)));
        page.entry("steps", &join(doc.steps.iter().map(|s| s.name)));
        page.out.push('\n');
    }
    page.out
        .push_str("`faultbox protocols NAME` shows one of them in full.\n");
    page.out
}

/// One protocol in full.
pub fn page(doc: &ProtocolDoc, width: usize) -> String {
    let mut page = Page {
        out: String::new(),
        width,
    };
    page.heading(doc);
    page.section("Matchers (keywords that select requests)");
    if doc.matchers.is_empty() {
        page.out.push_str("  none\n");
    }
    page.params(doc.matchers, "  ");
    page.section("Actions (rules of a fault on an interface)");
    for action in doc.actions {
        page.action(action);
    }
    page.section("Keywords of every action");
    page.params(COMMON_PARAMS, "  ");
    page.section("Steps (what a spec can send)");
    for step in doc.steps {
        page.step(step);
    }
    page.out
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

struct Page {
    out: String,
    width: usize,
}

impl Page {
    fn heading(&mut self, doc: &ProtocolDoc) {
        let aliases = match doc.aliases {
            [] => String::new(),
            names => format!(" (also {})", names.join(", ")),
        };
        let _ = writeln!(self.out, "{}{aliases}", doc.name);
        self.prose("  ", doc.summary);
    }

    fn section(&mut self, title: &str) {
        let _ = writeln!(self.out, "\n{title}");
    }

    fn prose(&mut self, indent: &str, words: &str) {
        let room = self.width.saturating_sub(indent.len()).max(20);
        for line in text::wrap(words, room) {
            let _ = writeln!(self.out, "{indent}{line}");
        }
    }

    fn entry(&mut self, head: &str, words: &str) {
        let indent = 12;
        for (i, line) in text::wrap(words, self.width.saturating_sub(indent).max(20))
            .iter()
            .enumerate()
        {
            let head = if i == 0 { head } else { "" };
            let _ = writeln!(self.out, "  {head:<10}{line}");
        }
    }

    fn params(&mut self, params: &[ParamDoc], indent: &str) {
        for param in params {
            let required = if param.required { ", required" } else { "" };
            let head = format!("{indent}{}=  ", param.name);
            let values = format!("{}{required}", param.kind.describe());
            // A choice among many words takes several lines.
            let column = head.len();
            let room = self.width.saturating_sub(column).max(20);
            for (i, line) in text::wrap(&values, room).iter().enumerate() {
                let head = if i == 0 { head.as_str() } else { "" };
                let _ = writeln!(self.out, "{head:<column$}{line}");
            }
            self.prose(&format!("{indent}    "), param.doc);
        }
    }

    /// A name with its keywords; what does not fit goes below the first of them.
    fn call(&mut self, name: &str, keywords: &[String]) {
        let column = name.len() + 3;
        let text = format!("{})", keywords.join(", "));
        let room = self.width.saturating_sub(column).max(20);
        for (i, line) in text::wrap(&text, room).iter().enumerate() {
            let head = match i {
                0 => format!("  {name}("),
                _ => String::new(),
            };
            let _ = writeln!(self.out, "{head:<column$}{line}");
        }
    }

    fn action(&mut self, action: &ActionDoc) {
        let mut keywords: Vec<String> = vec![];
        if action.matched {
            keywords.push("MATCHERS".to_owned());
        }
        keywords.extend(action.params.iter().map(|p| format!("{}=", p.name)));
        self.call(action.name, &keywords);
        self.prose("    ", action.summary);
        self.params(action.params, "      ");
    }

    fn step(&mut self, step: &StepDoc) {
        let mut keywords: Vec<String> =
            step.params.iter().map(|p| format!("{}=", p.name)).collect();
        if step.variadic {
            keywords.push("*args".to_owned());
        }
        self.call(step.name, &keywords);
        self.prose("    ", step.summary);
        self.params(step.params, "      ");
    }
}
