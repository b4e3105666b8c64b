//! Which tests `--test` means.

use std::path::Path;

use faultbox_contract::rule::nearest;
use faultbox_contract::{Dialect, Glob};

use super::problem::Problem;
use crate::plan::TestDecl;

/// Up to this many names are listed whole when a pattern matches none of them.
const LISTED: usize = 12;

/// The tests that any of `patterns` selects, in the order declared; all of them if there is no pattern.
///
/// # Errors
/// A pattern that selects nothing, or is not a usable glob.
pub fn select<'a>(
    spec: &Path,
    tests: &'a [TestDecl],
    patterns: &[String],
) -> Result<Vec<&'a TestDecl>, Problem> {
    if patterns.is_empty() {
        return Ok(tests.iter().collect());
    }
    let mut chosen = vec![false; tests.len()];
    for pattern in patterns {
        // A name is a name, even one that reads as a glob.
        if let Some(i) = tests.iter().position(|t| t.name == *pattern) {
            chosen[i] = true;
            continue;
        }
        let glob = Glob::new(pattern, Dialect::Text).map_err(|e| {
            Problem::usage(format!("--test: {e}"), "quote special characters with \\")
        })?;
        let mut any = false;
        for (test, chosen) in tests.iter().zip(&mut chosen) {
            if glob.matches(&test.name) {
                *chosen = true;
                any = true;
            }
        }
        if !any {
            return Err(nothing(spec, tests, pattern));
        }
    }
    let selected = tests.iter().zip(chosen).filter(|(_, chosen)| *chosen);
    Ok(selected.map(|(test, _)| test).collect())
}

fn nothing(spec: &Path, tests: &[TestDecl], pattern: &str) -> Problem {
    let names: Vec<&str> = tests.iter().map(|t| t.name.as_str()).collect();
    let near = near(pattern, &names);
    let help = if names.is_empty() {
        "the spec declares no tests".to_owned()
    } else if names.len() <= LISTED {
        let list = names.join(", ");
        match near.first() {
            Some(best) => format!("did you mean `{best}`? The tests are {list}"),
            None => format!("the tests are {list}"),
        }
    } else if near.is_empty() {
        format!(
            "`faultbox test {} --list` shows all {} names; a pattern may use *, ?, [abc] and {{a,b}}",
            spec.display(),
            names.len()
        )
    } else {
        format!(
            "did you mean {}? `faultbox test {} --list` shows all {} names",
            near.iter()
                .map(|n| format!("`{n}`"))
                .collect::<Vec<_>>()
                .join(" or "),
            spec.display(),
            names.len()
        )
    };
    Problem::usage(
        format!("--test `{pattern}` matches no test of {}", spec.display()),
        help,
    )
}

/// The names that the pattern was probably meant for: one slip of the hand away, or containing what was typed.
fn near<'a>(pattern: &str, names: &[&'a str]) -> Vec<&'a str> {
    let word = pattern.trim_matches(|c| "*?".contains(c)).to_lowercase();
    let mut near: Vec<&str> = nearest(pattern, names).into_iter().collect();
    if word.len() >= 3 {
        for name in names {
            if near.len() < 3 && name.to_lowercase().contains(&word) && !near.contains(name) {
                near.push(name);
            }
        }
    }
    near
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{SpecPos, TestKind};

    fn tests(names: &[&str]) -> Vec<TestDecl> {
        let decl = |name: &&str| TestDecl {
            name: (*name).to_owned(),
            kind: TestKind::Function,
            timeout: std::time::Duration::from_secs(30),
            baseline: None,
            require_faults_fire: false,
            pos: SpecPos::default(),
        };
        names.iter().map(decl).collect()
    }

    fn pick(names: &[&str], patterns: &[&str]) -> Result<Vec<String>, String> {
        let tests = tests(names);
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
        select(Path::new("s.star"), &tests, &patterns)
            .map(|tests| tests.iter().map(|t| t.name.clone()).collect())
            .map_err(|p| p.render(&crate::report::Style::PLAIN))
    }

    #[test]
    fn names_and_globs_in_the_order_declared() {
        let names = ["test_a", "test_b", "matrix_x[1]_y"];
        assert_eq!(pick(&names, &[]).unwrap(), names);
        assert_eq!(
            pick(&names, &["test_b", "test_a", "test_b"]).unwrap(),
            ["test_a", "test_b"]
        );
        assert_eq!(
            pick(&names, &["*_{a,y}"]).unwrap(),
            ["test_a", "matrix_x[1]_y"]
        );
        assert_eq!(pick(&names, &["matrix_x[1]_y"]).unwrap(), ["matrix_x[1]_y"]);
    }

    #[test]
    fn what_selects_nothing_is_told_apart() {
        let names = ["test_pay", "test_refund"];
        let error = pick(&names, &["test_a*", "test_pya"]).unwrap_err();
        assert!(
            error.contains("`test_a*` matches no test of s.star"),
            "{error}"
        );
        let error = pick(&names, &["test_pya"]).unwrap_err();
        assert!(error.contains("did you mean `test_pay`?"), "{error}");
        let error = pick(&names, &["test_[pay"]).unwrap_err();
        assert!(error.contains("unclosed `[`"), "{error}");
        let error = pick(&[], &["x"]).unwrap_err();
        assert!(error.contains("declares no tests"), "{error}");
        let many: Vec<String> = (0..40).map(|i| format!("test_{i}_refund")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let error = pick(&many, &["*Refund"]).unwrap_err();
        assert!(
            error.contains("`test_0_refund` or `test_1_refund` or `test_2_refund`"),
            "{error}"
        );
        assert!(error.contains("--list` shows all 40"), "{error}");
    }
}
