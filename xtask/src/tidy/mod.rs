//! `cargo xtask tidy`: the repository's own rules, as code.
//!
//! A rule reads the files that git knows and says what is wrong, with the place. Each has a test that breaks it.

mod layout;
mod source;
mod text;

use std::process::Command;

use crate::run;
use crate::{Error, Result};

/// One file of the repository.
#[derive(Debug, Clone)]
pub struct File {
    /// Relative to the root, with `/`.
    pub path: String,
    /// Its text; `None` if it is no UTF-8.
    pub text: Option<String>,
}

impl File {
    /// Its lines with their numbers, from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let text = self.text.as_deref().unwrap_or_default();
        text.split('\n').enumerate().map(|(i, line)| (i + 1, line))
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// All files.
#[derive(Debug, Default)]
pub struct Repo {
    files: Vec<File>,
}

impl Repo {
    fn get(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|f| f.path == path)
    }

    fn has(&self, path: &str) -> bool {
        self.get(path).is_some()
    }

    fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|f| f.is_rust())
    }

    /// The files below `folder` (with its `/`).
    fn below<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a File> {
        self.files
            .iter()
            .filter(move |f| f.path.starts_with(folder))
    }

    /// Reads what git tracks, and what it would track if it were added.
    fn read() -> Result<Repo> {
        let root = run::root();
        let mut git = Command::new("git");
        git.current_dir(&root).args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "-z",
        ]);
        let output = git.output().map_err(|e| run::cannot_run(&git, &e))?;
        if !output.status.success() {
            return Err(Error::new("git does not list the files here").help(
                "tidy needs a git checkout; if it belongs to another user, git wants `safe.directory` set",
            ));
        }
        let names = String::from_utf8_lossy(&output.stdout);
        let mut files: Vec<File> = names
            .split('\0')
            .filter(|name| !name.is_empty())
            // Deleted and not yet committed, or a submodule.
            .filter_map(|name| Some((name, std::fs::read(root.join(name)).ok()?)))
            .map(|(name, bytes)| File {
                path: name.to_owned(),
                text: String::from_utf8(bytes).ok(),
            })
            .collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Repo { files })
    }
}

/// What is wrong, led by the place: `path:line: what`.
type Violations = Vec<String>;

/// A rule's name and what checks it.
type Rule = (&'static str, fn(&Repo) -> Violations);

const RULES: &[Rule] = &[
    ("trailing white space", text::trailing_space),
    ("files end with a newline", text::final_newline),
    ("files have a length one can read", text::length),
    ("unfinished work", text::unfinished),
    ("paths of one machine", text::machine_paths),
    ("addresses of registries", text::registries),
    ("dependencies point one way", source::directions),
    ("what proxies must not know", source::forbidden),
    ("unsafe code", source::unsafe_code),
    ("every protocol has the same files", layout::protocols),
    ("licence files", layout::licences),
    ("crates inherit from the workspace", layout::manifests),
    ("the code map is complete", layout::code_map),
    ("conformance specs have expectations", layout::conformance),
    ("links between documents", layout::links),
];

/// Checks every rule.
pub fn run() -> Result {
    let repo = Repo::read()?;
    let mut count = 0;
    for (name, rule) in RULES {
        let violations = rule(&repo);
        count += violations.len();
        if !violations.is_empty() {
            println!("{name}:");
        }
        for violation in violations {
            println!("  {violation}");
        }
    }
    match count {
        0 => println!("tidy: {} rules, {} files", RULES.len(), repo.files.len()),
        n => println!("tidy: {n} violations"),
    }
    Ok(count == 0)
}

/// A repository of these files, for the rules' tests.
#[cfg(test)]
fn repo(files: &[(&str, &str)]) -> Repo {
    Repo {
        files: files
            .iter()
            .map(|(path, text)| File {
                path: (*path).to_owned(),
                text: Some((*text).to_owned()),
            })
            .collect(),
    }
}
