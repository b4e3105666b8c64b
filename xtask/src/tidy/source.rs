//! Rules about Rust and its manifests.

use super::{File, Repo, Violations};

/// Who may depend on whom, from the bottom up. A crate may use only crates of a lower layer.
const LAYERS: &[&[&str]] = &[
    &["faultbox-contract"],
    &["faultbox-engine", "faultbox-sql"],
    &[
        "faultbox-dns",
        "faultbox-http",
        "faultbox-http2",
        "faultbox-kafka",
        "faultbox-mysql",
        "faultbox-postgres",
        "faultbox-redis",
        "faultbox-tcp",
        "faultbox-udp",
    ],
    &["faultbox-fleet", "faultbox-mocks"],
    &["faultbox"],
];

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&name))
}

/// The names in the dependency tables of a manifest, with their lines. `dev` tables count: a test that reaches up ties the knot too.
fn dependencies(manifest: &File) -> Vec<(usize, String)> {
    let mut inside = false;
    let mut found = vec![];
    for (number, line) in manifest.lines() {
        if let Some(table) = line.strip_prefix('[') {
            inside = table.trim_end_matches(']').ends_with("dependencies");
        } else if inside && !line.starts_with('#') {
            let end = line.find(['.', ' ', '=']).unwrap_or(line.len());
            if end > 0 {
                found.push((number, line[..end].trim_matches('"').to_owned()));
            }
        }
    }
    found
}

fn package_name(manifest: &File) -> Option<&str> {
    let (_, line) = manifest.lines().find(|(_, l)| l.starts_with("name = "))?;
    line.split('"').nth(1)
}

/// contract ← engine, sql ← protocol ← fleet, mocks ← faultbox, and the services that specs test know none of them.
pub fn directions(repo: &Repo) -> Violations {
    let mut found = vec![];
    for file in repo.files.iter().filter(|f| f.path.ends_with("Cargo.toml")) {
        let own = package_name(file).and_then(layer);
        let listed = package_name(file).is_none_or(|n| {
            !matches!(
                n,
                "xtask"
                    | "faultbox-bench"
                    | "faultbox-fuzz"
                    | "faultbox-instructions"
                    | "faultbox-traffic"
            )
        });
        for (number, name) in dependencies(file) {
            let Some(theirs) = layer(&name).filter(|_| file.path != "Cargo.toml") else {
                continue;
            };
            let wrong = match own {
                // A crate may list itself, to have features in its own tests.
                Some(_) if package_name(file) == Some(name.as_str()) => false,
                Some(own) => own <= theirs,
                None => listed,
            };
            if wrong {
                found.push(format!("{}:{number}: must not depend on {name}", file.path));
            }
        }
    }
    for file in repo.below("proxies/") {
        if let Some(name) = file
            .path
            .ends_with("Cargo.toml")
            .then(|| package_name(file))
            && name.and_then(layer).is_none()
        {
            found.push(format!(
                "{}: has no place in the order of layers (xtask/src/tidy/source.rs)",
                file.path
            ));
        }
    }
    found
}

/// Crates that have no business below `proxies/`: a protocol is usable without the language, the supervisor and the command.
const FORBIDDEN: &[&str] = &["starlark", "libseccomp", "clap", "miette", "indicatif"];

/// Nothing under proxies/ knows Starlark, seccomp or reports.
pub fn forbidden(repo: &Repo) -> Violations {
    let mut found = vec![];
    for file in repo
        .below("proxies/")
        .filter(|f| f.path.ends_with("Cargo.toml"))
    {
        for (number, name) in dependencies(file) {
            if FORBIDDEN.contains(&name.as_str()) {
                found.push(format!(
                    "{}:{number}: a proxy must not know {name}",
                    file.path
                ));
            }
        }
    }
    found
}

/// Where `unsafe` may stand.
const UNSAFE_ALLOWED: &[&str] = &[
    "faultbox-user/src/sys/",
    "proxies/engine/src/",
    // Every helper of the kernel's is unsafe to call.
    "faultbox-ebpf/programs/src/",
    // How aya is told that a record is made of plain bytes.
    "faultbox-ebpf/common/src/lib.rs",
    // What is measured against is the kernel's barest interface.
    "xtask/bench/src/floor.rs",
    // A program under test, whose whole point is the bare call.
    "specs/conformance/victim/src/calls",
];

/// How far above its block a SAFETY comment may begin.
const SAFETY_REACH: usize = 12;

/// `unsafe` stands only where it may, and each with its argument.
pub fn unsafe_code(repo: &Repo) -> Violations {
    let mut found = vec![];
    for file in repo.rust() {
        let lines: Vec<&str> = file.lines().map(|(_, l)| l).collect();
        for (i, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            // The type of a function pointer runs nothing.
            // Nor does an attribute that names a symbol.
            let attribute = code.trim_start().starts_with("#[unsafe(");
            if attribute || !opens_unsafe(code) || code.contains("unsafe extern \"C\" fn(") {
                continue;
            }
            let at = format!("{}:{}", file.path, i + 1);
            if !UNSAFE_ALLOWED
                .iter()
                .any(|allowed| file.path.starts_with(allowed))
            {
                found.push(format!(
                    "{at}: unsafe code stands only in {}",
                    UNSAFE_ALLOWED.join(", ")
                ));
                continue;
            }
            let above = &lines[i.saturating_sub(SAFETY_REACH)..=i];
            if !above
                .iter()
                .any(|l| l.contains("SAFETY:") || l.contains("# Safety"))
            {
                found.push(format!("{at}: no SAFETY comment says why this is sound"));
            }
        }
    }
    found
}

/// Does this code (without its comment) use the keyword, outside a string?
fn opens_unsafe(code: &str) -> bool {
    let outside: String = code.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    outside
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|word| word == "unsafe")
}

#[cfg(test)]
mod tests {
    use super::super::repo;
    use super::*;

    fn manifest(name: &str, dependency: &str) -> String {
        format!("[package]\nname = \"{name}\"\n\n[dependencies]\n{dependency}.workspace = true\n")
    }

    #[test]
    fn dependencies_that_point_up_are_found() {
        let check = |name: &str, dependency: &str| {
            directions(&repo(&[("x/Cargo.toml", &manifest(name, dependency))])).len()
        };
        assert_eq!(check("faultbox-engine", "faultbox-contract"), 0);
        assert_eq!(check("faultbox-contract", "faultbox-engine"), 1);
        assert_eq!(check("faultbox-http", "faultbox-tcp"), 1);
        assert_eq!(check("faultbox-fleet", "faultbox"), 1);
        assert_eq!(check("orders-service", "faultbox-http"), 1);
        let stranger = manifest("faultbox-gopher", "bytes");
        assert_eq!(
            directions(&repo(&[("proxies/gopher/Cargo.toml", &stranger)])).len(),
            1
        );
    }

    #[test]
    fn what_proxies_must_not_know() {
        let text = manifest("faultbox-http", "starlark");
        assert_eq!(
            forbidden(&repo(&[("proxies/http/Cargo.toml", &text)])).len(),
            1
        );
        assert_eq!(
            forbidden(&repo(&[("faultbox-user/Cargo.toml", &text)])).len(),
            0
        );
    }

    #[test]
    fn unsafe_needs_its_place_and_its_argument() {
        let bare = "fn f() {\n    unsafe { g() }\n}\n";
        let argued = "fn f() {\n    // SAFETY: g has no precondition.\n    unsafe { g() }\n}\n";
        let check = |path, text| unsafe_code(&repo(&[(path, text)])).len();
        assert_eq!(check("faultbox-user/src/sys/a.rs", bare), 1);
        assert_eq!(check("faultbox-user/src/sys/a.rs", argued), 0);
        assert_eq!(check("faultbox-user/src/run/a.rs", argued), 1);
        assert_eq!(
            check(
                "a.rs",
                "// unsafe\nlet s = \"unsafe\"; let unsafe_code = 1;\n"
            ),
            0
        );
    }
}
