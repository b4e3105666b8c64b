//! Rules about text, whatever it is.

use super::{File, Repo, Violations};

/// Generated, or someone else's words.
fn is_ours(file: &File) -> bool {
    // A corpus is bytes of protocols, white space and all.
    let generated = file.path.ends_with("Cargo.lock") || file.path.starts_with("fuzz/corpus/");
    !generated && !file.path.starts_with("LICENSE")
}

fn each_line(repo: &Repo, check: impl Fn(&File, &str) -> Option<String>) -> Violations {
    let mut found = vec![];
    for file in repo.files.iter().filter(|f| is_ours(f)) {
        for (number, line) in file.lines() {
            if let Some(what) = check(file, line) {
                found.push(format!("{}:{number}: {what}", file.path));
            }
        }
    }
    found
}

/// Golden files hold what a terminal shows, white space and all.
fn is_golden(file: &File) -> bool {
    file.path.contains("/golden/") || (file.path.contains("/tests/") && file.path.ends_with(".txt"))
}

/// No line ends with white space.
pub fn trailing_space(repo: &Repo) -> Violations {
    each_line(repo, |file, line| {
        (!is_golden(file) && line.ends_with([' ', '\t', '\r']))
            .then(|| "white space at the end".into())
    })
}

/// A text file ends with exactly one newline.
pub fn final_newline(repo: &Repo) -> Violations {
    let wrong = |text: &str| !text.is_empty() && (!text.ends_with('\n') || text.ends_with("\n\n"));
    repo.files
        .iter()
        .filter(|f| is_ours(f) && !is_golden(f))
        .filter(|f| f.text.as_deref().is_some_and(wrong))
        .map(|f| format!("{}: must end with one newline", f.path))
        .collect()
}

/// Beyond this a source file is more than one concern.
const MAX_LINES: usize = 800;
/// A test file is a list of cases, and read one at a time.
const MAX_TEST_LINES: usize = 1200;

/// Source files stay short.
pub fn length(repo: &Repo) -> Violations {
    repo.rust()
        // Tables by their nature: one line per system call.
        .filter(|f| !f.path.starts_with("faultbox-user/src/sys/"))
        .filter_map(|f| {
            let most = match f.path.contains("/tests/") {
                true => MAX_TEST_LINES,
                false => MAX_LINES,
            };
            let lines = f.lines().count();
            (lines > most).then(|| {
                format!(
                    "{}: {lines} lines; more than {most} is more than one concern",
                    f.path
                )
            })
        })
        .collect()
}

/// What marks work that is not done. Spelt in halves, so that this file passes its own rule.
const MARKS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("dbg", "!("),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
];

/// Nothing is left half done.
pub fn unfinished(repo: &Repo) -> Violations {
    each_line(repo, |_, line| {
        let mark = MARKS.iter().find(|mark| line.contains(**mark))?;
        Some(format!("`{mark}`"))
    })
}

const MACHINE_PATHS: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
];

/// No path that exists on one machine only.
pub fn machine_paths(repo: &Repo) -> Violations {
    each_line(repo, |_, line| {
        let path = MACHINE_PATHS.iter().find(|path| line.contains(**path))?;
        Some(format!("`{path}` exists on one machine only"))
    })
}

const REGISTRIES: &[&str] = &[
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("registry.npm", "js.org"),
    concat!("deb.debian", ".org"),
    concat!("archive.ubuntu", ".com"),
    concat!("docker", ".io"),
    concat!("gh", "cr.io"),
];

/// Where packages come from is the machine's affair, not the repository's.
pub fn registries(repo: &Repo) -> Violations {
    each_line(repo, |_, line| {
        let host = REGISTRIES.iter().find(|host| line.contains(**host))?;
        Some(format!("`{host}`: name no registry"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::repo;
    use super::*;

    #[test]
    fn each_rule_can_be_broken() {
        let long = "//\n".repeat(MAX_LINES + 1);
        type Case<'a> = (fn(&Repo) -> Violations, &'a str, &'a str);
        let cases: &[Case] = &[
            (trailing_space, "a.md", "x \n"),
            (final_newline, "a.md", "x"),
            (final_newline, "a.md", "x\n\n"),
            (length, "a/src/a.rs", &long),
            (unfinished, "a.rs", concat!("// TO", "DO later\n")),
            (machine_paths, "a.md", concat!("see /ro", "ot/x\n")),
            (
                registries,
                "a.sh",
                concat!("curl https://static.crates", ".io\n"),
            ),
        ];
        for (rule, path, text) in cases {
            assert_eq!(rule(&repo(&[(path, text)])).len(), 1, "{path}");
            assert_eq!(rule(&repo(&[(path, "fine\n")])), Violations::new());
        }
    }
}
