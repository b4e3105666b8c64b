//! `cargo xtask instructions`: how many instructions each protocol's codec takes for a request and its reply, and its proxy with no
//! rule and with rules that do not match; compared with what is committed.
//!
//! Time says little on a machine that does other things, too; callgrind counts the same on all that have the same compiler and C library.
//! `xtask/instructions/` drives fixed traffic, a case per process, and callgrind counts inside its tasks only.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use crate::{Error, Result, run, setup, specs};

/// The committed figures: what they were counted with, then `<case> <instructions per request>`, one per line.
const FIGURES: &str = "xtask/instructions/figures.txt";
/// From where on a difference from the committed figure is pointed out, in percent: the seeds of hash tables, and which branch of a select!
/// comes first, move figures by less than a third of it.
const TOLERANCE: f64 = 3.0;
/// From where on it is a failure, if it is more: what the compiler inlines moves a figure or two by several percent when anything that it
/// is built together with changes.
const LIMIT: f64 = 10.0;
const ACCEPT: &str = "cargo xtask instructions --bless";

/// What to do with the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Show them beside the committed ones.
    Show,
    /// The same; those that differ are a failure.
    Check,
    /// Write them down.
    Bless,
}

/// What was counted, and with what.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    tools: String,
    cases: BTreeMap<String, u64>,
}

impl Figures {
    fn parse(text: &str) -> Result<Figures> {
        let mut figures = Figures::default();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            if let Some(tools) = line.strip_prefix("with ") {
                figures.tools = tools.to_owned();
                continue;
            }
            let parsed = line
                .split_once(' ')
                .and_then(|(case, n)| Some((case.to_owned(), n.trim().parse().ok()?)));
            let (case, n) =
                parsed.ok_or_else(|| Error::new(format!("{FIGURES}: `{line}` is no figure")))?;
            figures.cases.insert(case, n);
        }
        Ok(figures)
    }

    fn text(&self) -> String {
        let mut out = format!(
            "# Instructions per request and its reply. Written by `{ACCEPT}`.\nwith {}\n",
            self.tools
        );
        for (case, n) in &self.cases {
            let _ = writeln!(out, "{case} {n}");
        }
        out
    }
}

/// Counts, and shows, compares or accepts.
pub fn run(mode: Mode) -> Result {
    setup::for_instructions()?;
    specs::build_release()?;
    let counted = count()?;
    let path = run::root().join(FIGURES);
    if mode == Mode::Bless {
        std::fs::write(&path, counted.text()).map_err(|e| trouble(&path, &e))?;
        println!("{FIGURES}: {} figures written", counted.cases.len());
        return Ok(true);
    }
    let committed = Figures::parse(&std::fs::read_to_string(&path).unwrap_or_default())?;
    let (text, same) = compare(&committed, &counted);
    print!("{text}");
    Ok(same || mode == Mode::Show)
}

/// A line per case, what to do, and whether all is as committed. With other tools nothing can be said, so nothing fails.
fn compare(committed: &Figures, counted: &Figures) -> (String, bool) {
    let mut text = String::new();
    let (mut more, mut moved) = (0, 0);
    for (case, n) in &counted.cases {
        let Some(old) = committed.cases.get(case) else {
            let _ = writeln!(text, "{case:28} {n:>9}  MORE: it has no committed figure");
            more += 1;
            continue;
        };
        let percent = (*n as f64 / *old as f64 - 1.0) * 100.0;
        let word = if percent > LIMIT {
            more += 1;
            "  MORE"
        } else if percent.abs() > TOLERANCE {
            moved += 1;
            "  moved"
        } else {
            ""
        };
        let _ = writeln!(
            text,
            "{case:28} {n:>9}  committed {old:>9}  {percent:+5.1} %{word}"
        );
    }
    for case in committed.cases.keys() {
        if !counted.cases.contains_key(case) {
            let _ = writeln!(text, "{case:28} is committed, and there is no such case");
            more += 1;
        }
    }
    if more + moved == 0 {
        return (text, true);
    }
    if committed.tools != counted.tools && !committed.tools.is_empty() {
        let _ = writeln!(
            text,
            "!! NOT COMPARED: these figures are from other tools than the committed ones, so the differences say nothing about the code
  committed: {}
  here:      {}",
            committed.tools, counted.tools
        );
        return (text, true);
    }
    if more > 0 {
        let _ = writeln!(
            text,
            "{more} of {} take more instructions than is committed (limit {LIMIT} %). If that is worth it: `{ACCEPT}`, and the commit says why",
            counted.cases.len()
        );
    }
    if moved > 0 {
        let _ = writeln!(
            text,
            "{moved} of {} have moved: `{ACCEPT}`, if it is for good",
            counted.cases.len()
        );
    }
    (text, more == 0)
}

/// Counts all cases, as many at a time as there are CPUs.
fn count() -> Result<Figures> {
    let program = specs::target().join("release/faultbox-instructions");
    let folder = specs::target().join("instructions");
    std::fs::create_dir_all(&folder).map_err(|e| trouble(&folder, &e))?;
    let list = run::output(&mut Command::new(&program))?;
    let todo: Mutex<Vec<&str>> = Mutex::new(list.lines().collect());
    let done = Mutex::new(Ok(BTreeMap::new()));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cpus {
            scope.spawn(|| {
                let next = || todo.lock().ok()?.pop();
                while let Some(case) = next() {
                    let n = count_one(&program, &folder, case);
                    let Ok(mut done) = done.lock() else { return };
                    match (n, &mut *done) {
                        (Ok(n), Ok(figures)) => drop(figures.insert(case.to_owned(), n)),
                        (Err(e), Ok(_)) => *done = Err(e),
                        (_, Err(_)) => return,
                    }
                }
            });
        }
    });
    let cases = done
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)?;
    Ok(Figures {
        tools: tools()?,
        cases,
    })
}

/// Instructions per request of one case.
fn count_one(program: &Path, folder: &Path, case: &str) -> Result<u64> {
    let profile = folder.join(format!("{}.callgrind", case.replace('/', "-")));
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--quiet", "--tool=callgrind", "--collect-atstart=no"])
        // Tasks of the runtime, which are all proxies', and what runs without one. Mangling may put types behind a name.
        .arg("--toggle-collect=tokio::runtime::task::raw::poll*")
        .arg("--toggle-collect=*lab::counted*")
        .arg("--zero-before=*lab::counting_begins*")
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(program)
        .arg(case)
        // Whatever tunes the C library, the allocator or the runtime on this machine.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let said = run::output(&mut valgrind)?;
    let requests: u64 = said
        .trim()
        .parse()
        .map_err(|_| Error::new(format!("{case}: `{said}` is no number of requests")))?;
    let text = std::fs::read_to_string(&profile).map_err(|e| trouble(&profile, &e))?;
    match total(&text) {
        Some(n) if n >= requests => Ok(n / requests),
        _ => Err(
            Error::new(format!("{case}: callgrind has counted nothing")).help(
                "the names in xtask/src/instructions.rs must be those of functions in the program",
            ),
        ),
    }
}

/// "totals: 123" or, of a profile in parts, "summary: 123".
fn total(profile: &str) -> Option<u64> {
    let value = |name| profile.lines().rev().find_map(|l| l.strip_prefix(name));
    value("totals: ")
        .or_else(|| value("summary: "))?
        .trim()
        .parse()
        .ok()
}

/// What the figures depend on besides the sources. The C library chooses its memcpy by what the CPU has, of which callgrind passes on AVX2
/// at most.
fn tools() -> Result<String> {
    let first = |text: String| text.lines().next().unwrap_or_default().trim().to_owned();
    let rustc = first(
        run::output(run::cargo().args(["rustc", "--version"]))
            .or_else(|_| run::output(Command::new("rustc").arg("--version")))?,
    );
    let valgrind = first(run::output(Command::new("valgrind").arg("--version"))?);
    let libc = first(run::output(
        Command::new("getconf").arg("GNU_LIBC_VERSION"),
    )?);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let avx2 = cpu.split_whitespace().any(|word| word == "avx2");
    Ok(format!(
        "{rustc}, {valgrind}, {libc}, {}{}",
        std::env::consts::ARCH,
        if avx2 { " with avx2" } else { "" }
    ))
}

fn trouble(path: &Path, e: &std::io::Error) -> Error {
    Error::new(format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(tools: &str, cases: &[(&str, u64)]) -> Figures {
        Figures {
            tools: tools.into(),
            cases: cases.iter().map(|(c, n)| ((*c).to_owned(), *n)).collect(),
        }
    }

    #[test]
    fn figures_are_read_as_they_are_written() {
        let some = figures("rustc 1, valgrind 2", &[("a/b", 12), ("c/d", 3)]);
        assert_eq!(Figures::parse(&some.text()).unwrap(), some);
        assert!(Figures::parse("a/b twelve\n").is_err());
    }

    #[test]
    fn the_committed_figures_can_be_read() {
        let text = std::fs::read_to_string(run::root().join(FIGURES)).unwrap();
        let figures = Figures::parse(&text).unwrap();
        assert!(figures.cases.len() >= 20 && !figures.tools.is_empty());
    }

    #[test]
    fn much_more_fails_and_what_has_moved_is_told() {
        let old = figures("t", &[("a/b", 1000)]);
        let with = |n| compare(&old, &figures("t", &[("a/b", n)]));
        for (n, holds, said) in [
            (1029, true, "+2.9 %\n"),
            (1040, true, "+4.0 %  moved"),
            (800, true, "-20.0 %  moved"),
            (1101, false, "+10.1 %  MORE"),
        ] {
            let (text, same) = with(n);
            assert!(same == holds && text.contains(said), "{n}: {text}");
            assert_eq!(text.contains(ACCEPT), n != 1029, "{text}");
        }
    }

    #[test]
    fn cases_come_and_go_by_accepting_it() {
        let old = figures("t", &[("a/b", 1000)]);
        assert!(!compare(&old, &figures("t", &[])).1);
        assert!(!compare(&figures("t", &[]), &old).1);
    }

    #[test]
    fn other_tools_are_told_loudly_and_fail_nothing() {
        let old = figures("rustc 1", &[("a/b", 1000)]);
        let (text, same) = compare(&old, &figures("rustc 2", &[("a/b", 2000)]));
        assert!(
            same && text.contains("NOT COMPARED") && text.contains("rustc 2"),
            "{text}"
        );
        // Nothing to be told where nothing differs.
        let (text, same) = compare(&old, &figures("rustc 2", &[("a/b", 1001)]));
        assert!(same && !text.contains("NOT COMPARED"));
    }

    #[test]
    fn totals_are_found() {
        assert_eq!(
            total("events: Ir\nsummary: 12\n1 2\ntotals: 34\n"),
            Some(34)
        );
        assert_eq!(total("events: Ir\nsummary: 12\n"), Some(12));
        assert_eq!(total(""), None);
    }
}
