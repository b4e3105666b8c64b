//! Rules about which files there are.

use super::{Repo, Violations};

/// Crates under proxies/ that are no protocols.
const NO_PROTOCOLS: &[&str] = &["contract", "engine", "fleet", "mocks", "sql"];

/// What every protocol has, so that one knows where to look. Each may be a file or a folder.
const PROTOCOL_PARTS: &[&str] = &["codec", "rules", "proxy", "steps"];

/// Byte streams without messages have nothing to decode, and plain datagrams are their own messages.
const WITHOUT_CODEC: &[&str] = &["tcp", "udp"];

/// Every protocol crate has the same files.
pub fn protocols(repo: &Repo) -> Violations {
    let mut found = vec![];
    for name in folders(repo, "proxies/") {
        let folder = format!("proxies/{name}");
        if NO_PROTOCOLS.contains(&name) {
            continue;
        }
        if !repo.has(&format!("{folder}/README.md")) {
            found.push(format!("{folder}: has no README.md"));
        }
        for part in PROTOCOL_PARTS {
            let there = repo.has(&format!("{folder}/src/{part}.rs"))
                || repo.has(&format!("{folder}/src/{part}/mod.rs"));
            let excused = *part == "codec" && WITHOUT_CODEC.contains(&name);
            if !there && !excused {
                found.push(format!("{folder}: has no src/{part}.rs"));
            }
        }
        if repo.below(&format!("{folder}/tests/")).next().is_none() {
            found.push(format!("{folder}: has no tests/ against a real server"));
        }
    }
    found
}

/// The names of the folders directly below `parent`.
fn folders<'a>(repo: &'a Repo, parent: &'a str) -> Vec<&'a str> {
    let mut names: Vec<&str> = repo
        .below(parent)
        .filter_map(|f| Some(f.path[parent.len()..].split_once('/')?.0))
        .collect();
    names.dedup();
    names
}

/// Both licences are there.
pub fn licences(repo: &Repo) -> Violations {
    ["LICENSE-MIT", "LICENSE-APACHE"]
        .iter()
        .filter(|name| !repo.has(name))
        .map(|name| format!("{name} is missing"))
        .collect()
}

/// A crate of another workspace, because another compiler builds it.
const STRANGERS: &[&str] = &["faultbox-ebpf/programs/Cargo.toml"];

/// Every crate takes version, edition, licence and lints from the workspace, and says what it is.
pub fn manifests(repo: &Repo) -> Violations {
    const LINES: &[&str] = &[
        "version.workspace = true",
        "edition.workspace = true",
        "rust-version.workspace = true",
        "license.workspace = true",
        "publish.workspace = true",
        "[lints]",
    ];
    let mut found = vec![];
    for file in &repo.files {
        if !file.path.ends_with("/Cargo.toml") || STRANGERS.contains(&file.path.as_str()) {
            continue;
        }
        for wanted in LINES {
            if !file.lines().any(|(_, l)| l == *wanted) {
                found.push(format!("{}: lacks `{wanted}`", file.path));
            }
        }
        if !file.lines().any(|(_, l)| l.starts_with("description = ")) {
            found.push(format!("{}: lacks a description", file.path));
        }
    }
    found
}

/// ARCHITECTURE.md names every folder that stands at the top, and every crate.
pub fn code_map(repo: &Repo) -> Violations {
    let Some(text) = repo.get("ARCHITECTURE.md").and_then(|f| f.text.as_deref()) else {
        return vec!["ARCHITECTURE.md is missing".into()];
    };
    let mut names: Vec<&str> = folders(repo, "");
    names.extend(
        repo.files
            .iter()
            .filter_map(|f| f.path.strip_suffix("/Cargo.toml")),
    );
    names.sort_unstable();
    names.dedup();
    names
        .iter()
        .filter(|name| !text.contains(&format!("`{name}/`")))
        .map(|name| format!("ARCHITECTURE.md: the code map does not mention `{name}/`"))
        .collect()
}

/// Every misuse among the conformance specs says what must come out; the others must pass whole unless a file beside them says otherwise.
pub fn conformance(repo: &Repo) -> Violations {
    repo.below("specs/conformance/")
        .filter_map(|f| Some((&f.path, f.path.strip_suffix(".star")?)))
        .filter(|(path, _)| path.contains("/misuse"))
        .filter(|(_, stem)| !repo.has(&format!("{stem}.expected")))
        .map(|(path, _)| format!("{path}: no file beside it says what must come out"))
        .collect()
}

/// Links from one document to another lead somewhere.
pub fn links(repo: &Repo) -> Violations {
    let mut found = vec![];
    for file in repo.files.iter().filter(|f| f.path.ends_with(".md")) {
        for (number, line) in file.lines() {
            for target in line
                .split("](")
                .skip(1)
                .filter_map(|rest| rest.split([')', '#']).next())
            {
                let outside = target.contains("://") || target.starts_with("mailto:");
                if !target.is_empty() && !outside && !exists(repo, &file.path, target) {
                    found.push(format!("{}:{number}: `{target}` leads nowhere", file.path));
                }
            }
        }
    }
    found
}

fn exists(repo: &Repo, from: &str, target: &str) -> bool {
    let mut path: Vec<&str> = from.split('/').collect();
    path.pop();
    for part in target.trim_end_matches('/').split('/') {
        match part {
            ".." => drop(path.pop()),
            "." | "" => {}
            name => path.push(name),
        }
    }
    let path = path.join("/");
    path.is_empty() || repo.has(&path) || repo.below(&format!("{path}/")).next().is_some()
}

#[cfg(test)]
mod tests {
    use super::super::repo;
    use super::*;

    #[test]
    fn a_protocol_without_its_files_is_found() {
        let whole = [
            ("proxies/http/README.md", ""),
            ("proxies/http/src/codec.rs", ""),
            ("proxies/http/src/rules/mod.rs", ""),
            ("proxies/http/src/proxy.rs", ""),
            ("proxies/http/src/steps.rs", ""),
            ("proxies/http/tests/nginx.rs", ""),
        ];
        assert_eq!(protocols(&repo(&whole)), Violations::new());
        for left_out in 0..whole.len() {
            let mut rest = whole.to_vec();
            rest.remove(left_out);
            assert_eq!(protocols(&repo(&rest)).len(), 1, "{}", whole[left_out].0);
        }
        let engine = [("proxies/engine/src/lib.rs", "")];
        assert_eq!(protocols(&repo(&engine)), Violations::new());
    }

    #[test]
    fn the_code_map_names_folders_and_crates() {
        let check = |map| {
            let files = [
                ("ARCHITECTURE.md", map),
                ("a/b/Cargo.toml", ""),
                ("c.md", ""),
            ];
            code_map(&repo(&files)).len()
        };
        assert_eq!(check("- `a/` and `a/b/`"), 0);
        assert_eq!(check("- `a/`"), 1);
        assert_eq!(code_map(&repo(&[])).len(), 1);
    }

    #[test]
    fn what_is_missing_is_found() {
        assert_eq!(licences(&repo(&[("LICENSE-MIT", "")])).len(), 1);
        let bare = [("a/Cargo.toml", "[package]\ndescription = \"x\"\n")];
        assert_eq!(manifests(&repo(&bare)).len(), 6);
        let spec = ("specs/conformance/misuse/a.star", "");
        assert_eq!(conformance(&repo(&[spec])).len(), 1);
        let expected = ("specs/conformance/misuse/a.expected", "");
        assert_eq!(conformance(&repo(&[spec, expected])).len(), 0);
    }

    #[test]
    fn dead_links_are_found() {
        let check = |text| links(&repo(&[("docs/a.md", text), ("b/c.md", "")])).len();
        assert_eq!(
            check("[x](../b/c.md#y) [x](#z) [x](../b/) [x](https://x.y/)"),
            0
        );
        assert_eq!(check("[x](b/c.md)"), 1);
    }
}
