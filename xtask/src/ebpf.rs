//! `cargo xtask ebpf`: builds the programs for the kernel, or tells whether the committed object is what the sources give.
//!
//! The programs need a compiler that can build `core` for BPF: Debian's rustc with its library's sources, or a nightly toolchain with
//! `rust-src`; and bpf-linker. Nobody else needs any of that, because the object is committed. Beside it stands a stamp: a digest of the
//! sources it was built from, and the toolchain. The same toolchain must give the same bytes; with another one, only the digest can
//! be compared.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run;
use crate::{Error, Result, setup};

const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "faultbox-ebpf/prebuilt/faultbox.bpf.o";
const STAMP: &str = "faultbox-ebpf/prebuilt/faultbox.bpf.stamp";

/// What the object is made from.
const SOURCES: &[&str] = &[
    "faultbox-ebpf/common/src",
    "faultbox-ebpf/programs/src",
    "faultbox-ebpf/programs/Cargo.toml",
    "faultbox-ebpf/programs/Cargo.lock",
];

/// The linker's version, and the LLVM that it links with: the compiler's own or a newer one.
const LINKER: &str = "0.13.0";
const LLVM: &str = "22";

/// Something that can compile for BPF.
struct Toolchain {
    cargo: Vec<String>,
    rustc: Vec<String>,
    /// A stable compiler must be told that it may use what is not stable.
    bootstrap: bool,
}

impl Toolchain {
    fn command(&self, words: &[String]) -> Command {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(run::root());
        // The cargo that runs us names its own compiler.
        for name in ["RUSTC", "RUSTUP_TOOLCHAIN", "CARGO", "RUSTFLAGS"] {
            command.env_remove(name);
        }
        if self.bootstrap {
            command
                .env("RUSTC_BOOTSTRAP", "1")
                .env("RUSTC", &self.rustc[0]);
        }
        command
    }

    /// What the bytes depend on besides the sources.
    fn version(&self) -> Result<String> {
        Ok(format!(
            "{}; {}",
            run::output(self.command(&self.rustc).arg("--version"))?,
            run::output(Command::new(linker()).arg("--version"))?
        ))
    }
}

/// Debian's, or else rustup's nightly.
fn find() -> Option<Toolchain> {
    let word = |w: &str| vec![w.to_owned()];
    if Path::new("/usr/bin/rustc").exists()
        && Path::new("/usr/lib/rustlib/src/rust/library/core").exists()
    {
        return Some(Toolchain {
            cargo: word("/usr/bin/cargo"),
            rustc: word("/usr/bin/rustc"),
            bootstrap: true,
        });
    }
    let nightly = |program: &str| {
        ["rustup", "run", "nightly", program]
            .map(str::to_owned)
            .to_vec()
    };
    let sysroot =
        run::output(Command::new("rustup").args(["run", "nightly", "rustc", "--print=sysroot"]));
    let has_source = |root: String| {
        Path::new(&root)
            .join("lib/rustlib/src/rust/library/core")
            .exists()
    };
    sysroot.is_ok_and(has_source).then(|| Toolchain {
        cargo: nightly("cargo"),
        rustc: nightly("rustc"),
        bootstrap: false,
    })
}

/// bpf-linker where cargo installs, or in PATH.
fn linker() -> PathBuf {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    home.map(|home| home.join("bin/bpf-linker"))
        .filter(|path| path.exists())
        .unwrap_or_else(|| "bpf-linker".into())
}

/// Builds, and replaces the committed object; with `check`, compares instead.
pub fn run(check: bool) -> Result {
    let toolchain = match find().filter(|_| run::quietly(linker(), &["--version"])) {
        Some(toolchain) => toolchain,
        None => {
            setup::for_ebpf()?;
            install_linker()?;
            find().ok_or_else(|| {
                Error::new("there is no compiler for BPF").help(
                    "Debian: apt-get install rustc-web cargo-web rust-web-src; elsewhere: rustup toolchain install nightly --component rust-src",
                )
            })?
        }
    };
    let stamp = format!("{}\n{}\n", digest()?, toolchain.version()?);
    let committed = std::fs::read_to_string(run::root().join(STAMP)).unwrap_or_default();
    if check && committed != stamp {
        return Ok(only_stamp(&committed, &stamp));
    }
    let built = build(&toolchain)?;
    let bytes = std::fs::read(&built).map_err(|e| unreadable(&built, &e))?;
    let object = run::root().join(OBJECT);
    if check {
        let same = std::fs::read(&object).is_ok_and(|old| old == bytes);
        println!(
            "{OBJECT} {}",
            if same {
                "is what its sources give"
            } else {
                "is not what its sources give: run `cargo xtask ebpf` and commit the result"
            }
        );
        return Ok(same);
    }
    std::fs::write(&object, &bytes).map_err(|e| unreadable(&object, &e))?;
    let path = run::root().join(STAMP);
    std::fs::write(&path, stamp).map_err(|e| unreadable(&path, &e))?;
    println!("{OBJECT}: {} bytes", bytes.len());
    Ok(true)
}

/// The stamps differ: are at least the sources the same?
fn only_stamp(committed: &str, stamp: &str) -> bool {
    let lines = |text: &str| -> Vec<String> { text.lines().map(str::to_owned).collect() };
    let (old, new) = (lines(committed), lines(stamp));
    if old.first() != new.first() {
        println!(
            "{OBJECT} was built from other sources: run `cargo xtask ebpf` and commit the result"
        );
        return false;
    }
    println!(
        "{OBJECT} is from these sources, and from another toolchain, so its bytes were not compared:
  it:   {}
  here: {}",
        old.get(1).map_or("?", String::as_str),
        new.get(1).map_or("?", String::as_str)
    );
    true
}

fn build(toolchain: &Toolchain) -> Result<PathBuf> {
    let target = run::root().join("target/ebpf");
    let flags = [
        "-Ctarget-cpu=v3".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        // The kernel's verifier and aya both want BTF; the linker makes it from the debug information.
        "-Clink-arg=--btf".to_owned(),
        "-Clink-arg=--disable-memory-builtins".to_owned(),
        format!("-Clinker={}", linker().display()),
        remap(&run::root(), "faultbox"),
        remap(&registry(), "registry"),
        remap(Path::new("/usr/lib/rustlib/src/rust"), "rust"),
    ];
    run::must(
        toolchain
            .command(&toolchain.cargo)
            .current_dir(run::root().join("faultbox-ebpf/programs"))
            .args(["build", "--release", "--locked", "--target", TARGET])
            .arg("-Zbuild-std=core")
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")),
    )?;
    let linked = target.join(TARGET).join("release/faultbox");
    let stripped = target.join("faultbox.bpf.o");
    // Debug information is ten times as much as the rest; BTF is not part of it.
    let mut objcopy = Command::new(llvm("objcopy"));
    objcopy.arg("--strip-debug");
    for line in run::output(
        Command::new(llvm("nm"))
            .arg("--just-symbol-name")
            .arg(&linked),
    )?
    .lines()
    {
        if let Some(plain) = without_hash(line) {
            objcopy.arg(format!("--redefine-sym={line}={plain}"));
        }
    }
    run::must(objcopy.arg(&linked).arg(&stripped))?;
    Ok(stripped)
}

/// The name of a function without its crate's hash, in which the folders of this machine are, by way of the flags that remap them
/// (the "disambiguator" of rustc's symbol names, v0).
fn without_hash(symbol: &str) -> Option<String> {
    let (before, rest) = symbol.split_once("Cs")?;
    let (hash, after) = rest.split_once('_')?;
    (before.starts_with("_R") && hash.chars().all(|c| c.is_ascii_alphanumeric()))
        .then(|| format!("{before}C{after}"))
}

/// Line information names files; it must not name this machine's folders.
fn remap(from: &Path, to: &str) -> String {
    format!("--remap-path-prefix={}={to}", from.display())
}

/// Where cargo unpacks what it fetches: a folder per registry.
fn registry() -> PathBuf {
    let home = std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    let sources = home.join("registry/src");
    std::fs::read_dir(&sources)
        .ok()
        .and_then(|mut folders| folders.find_map(|f| Some(f.ok()?.path())))
        .unwrap_or(sources)
}

fn llvm(tool: &str) -> PathBuf {
    let versioned = PathBuf::from(format!("/usr/lib/llvm-{LLVM}/bin/llvm-{tool}"));
    if versioned.exists() {
        versioned
    } else {
        format!("llvm-{tool}").into()
    }
}

fn install_linker() -> Result<()> {
    if run::quietly(linker(), &["--version"]) {
        return Ok(());
    }
    run::must(
        run::cargo()
            .args(["install", "bpf-linker", "--locked", "--version", LINKER])
            .args([
                "--no-default-features",
                "--features",
                &format!("llvm-{LLVM}"),
            ])
            .env("CARGO_TARGET_DIR", run::root().join("target/bpf-linker"))
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}")),
    )
}

/// A digest of all sources: FNV-1a (draft-eastlake-fnv), 64 bits, over names and contents in order. It tells a forgotten build, and
/// nothing more is asked of it.
fn digest() -> Result<String> {
    let mut files = vec![];
    for source in SOURCES {
        collect(&run::root().join(source), &mut files)?;
    }
    files.sort();
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for path in files {
        let name = path.strip_prefix(run::root()).unwrap_or(&path);
        let bytes = std::fs::read(&path).map_err(|e| unreadable(&path, &e))?;
        let name = name.to_string_lossy().into_owned().into_bytes();
        for byte in name.into_iter().chain([0]).chain(bytes).chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    let mut text = String::new();
    let _ = write!(text, "sources {hash:016x}");
    Ok(text)
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path).map_err(|e| unreadable(path, &e))? {
        collect(&entry.map_err(|e| unreadable(path, &e))?.path(), files)?;
    }
    Ok(())
}

fn unreadable(path: &Path, e: &std::io::Error) -> Error {
    Error::new(format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_hash() {
        assert_eq!(
            without_hash("_RNCNvNtCs3deHdsddT7u_8faultbox7packets4lost0B5_").as_deref(),
            Some("_RNCNvNtC8faultbox7packets4lost0B5_")
        );
        for other in ["enter", "CUTS", "Cs_x", ".text", "_RNvC8faultbox5enter"] {
            assert_eq!(without_hash(other), None, "{other}");
        }
    }

    #[test]
    fn the_committed_object_is_from_these_sources() {
        let stamp = std::fs::read_to_string(run::root().join(STAMP)).unwrap();
        assert_eq!(
            stamp.lines().next(),
            Some(digest().unwrap().as_str()),
            "run `cargo xtask ebpf` and commit the result"
        );
    }

    #[test]
    fn stamps_are_compared_by_their_sources_first() {
        let old = "sources 1\nrustc 1\n";
        assert!(only_stamp(old, "sources 1\nrustc 2\n"));
        assert!(!only_stamp(old, "sources 2\nrustc 1\n"));
        assert!(!only_stamp("", old));
    }
}
