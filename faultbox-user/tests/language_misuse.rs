//! Every misuse of the language, as golden text: what is said, where, and what is underlined.
//!
//! `tests/language/misuse.txt` holds the cases. `UPDATE_GOLDEN=1 cargo test -p faultbox --test language_misuse` rewrites the answers;
//! read the difference before committing it.

mod common;

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use faultbox::spec::{Diagnostic, LoadedSpec, PlanPorts};

fn render(d: &Diagnostic, folder: &Path) -> String {
    let at = |text: &str| text.replace(&format!("{}/", folder.display()), "");
    let start = d.span.start.min(d.source.len());
    let line_start = d.source[..start].rfind('\n').map_or(0, |n| n + 1);
    let line_end = d.source[start..]
        .find('\n')
        .map_or(d.source.len(), |n| start + n);
    let line = d.source[..start].matches('\n').count() + 1;
    let column = d.source[line_start..start].chars().count() + 1;
    let width = d.source[start..d.span.end.clamp(start, line_end)]
        .chars()
        .count();
    let mut out = String::new();
    let _ = writeln!(out, "error: {}", at(&d.message));
    let _ = writeln!(out, " --> {}:{line}:{column}", at(&d.file));
    let _ = writeln!(out, "  | {}", &d.source[line_start..line_end]);
    let underline = format!(
        "  | {}{} {}",
        " ".repeat(column - 1),
        "^".repeat(width),
        d.label
    );
    let _ = writeln!(out, "{}", underline.trim_end());
    if let Some(help) = &d.help {
        // The list of every syscall or errno would drown the case.
        let _ = writeln!(out, "help: {}", at(help));
    }
    out
}

#[test]
fn misuses_are_refused_with_their_place() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/language/misuse.txt");
    let text = std::fs::read_to_string(&file).unwrap();
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut rewritten = String::new();
    let mut wrong = vec![];
    let mut cases = 0;
    for case in text.split("=== ").skip(1) {
        cases += 1;
        let (name, rest) = case.split_once('\n').unwrap();
        let (spec, expected) = rest.split_once("---\n").unwrap_or((rest, ""));
        let folder = tempfile::tempdir().unwrap();
        // `--- other.star` starts a further file.
        let mut files = vec![("spec.star".to_owned(), String::new())];
        for line in spec.lines() {
            match line.strip_prefix("# file: ") {
                Some(name) => files.push((name.to_owned(), String::new())),
                None => {
                    let (_, text) = files.last_mut().unwrap();
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        for (name, text) in &files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let path = folder.path().join("spec.star");
        let answer =
            match LoadedSpec::load_with(&path, Arc::new(PlanPorts::default()), common::toys) {
                Ok(_) => "loaded\n".to_owned(),
                Err(e) => {
                    assert!(
                        !e.diagnostics.is_empty(),
                        "{name}: an error without diagnostics"
                    );
                    e.diagnostics
                        .iter()
                        .map(|d| render(d, folder.path()))
                        .collect()
                }
            };
        let spec = if spec.ends_with('\n') {
            spec.to_owned()
        } else {
            format!("{spec}\n")
        };
        let _ = write!(
            rewritten,
            "=== {name}\n{}\n---\n{answer}\n",
            spec.trim_end()
        );
        if answer.trim() != expected.trim() {
            wrong.push(format!(
                "=== {name}\nexpected:\n{}\ngot:\n{answer}",
                expected.trim()
            ));
        }
        // Whatever is misused, it must be refused: a misuse that loads is a silent skip.
        assert!(
            answer != "loaded\n" || name.starts_with("ok:"),
            "{name} was accepted"
        );
    }
    assert!(cases > 80, "only {cases} cases were found");
    if update {
        std::fs::write(&file, rewritten).unwrap();
    } else {
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
