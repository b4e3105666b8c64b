//! `cargo xtask vm`: the specs of the kernel's side and of system calls on another kernel, in a virtual machine.
//!
//! qemu emulates the processor, so this takes minutes, and nothing of it is timed. The machine has no disk and no network: a kernel, and
//! an archive in memory with Faultbox, the services that the specs fault, and the libraries that these load.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::run;
use crate::{Error, Result, setup, specs};

const INIT: &str = include_str!("init.sh");
/// Debian's name for its newest kernel for virtual machines.
const NEWEST: &str = "linux-image-cloud-amd64";
/// Python's version in Debian's packages stands in its paths.
const PYTHON: &str = "/usr/bin/python3";

/// Boots `kernel`: a kernel image, or the name of a Debian package that brings one; without it, Debian's own.
pub fn run(kernel: Option<&str>) -> Result {
    setup::for_vm()?;
    specs::build()?;
    let dir = specs::target().join("vm");
    let _ = std::fs::remove_dir_all(&dir);
    make(&dir)?;
    let image = match kernel {
        Some(path) if Path::new(path).is_file() => PathBuf::from(path),
        Some(package) => from_package(package, &dir)?,
        None => from_package(&newest()?, &dir)?,
    };
    let archive = pack(&dir)?;
    boot(&image, &archive)
}

fn failed(what: &Path, e: &std::io::Error) -> Error {
    Error::new(format!("{}: {e}", what.display()))
}

fn make(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| failed(dir, &e))
}

/// The package that Debian's own depends on.
fn newest() -> Result<String> {
    run::output(Command::new("apt-cache").args(["depends", NEWEST]))?
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .map(str::to_owned)
        .ok_or_else(|| {
            Error::new(format!("apt knows no {NEWEST}"))
                .help("run apt-get update, or name a kernel image: cargo xtask vm /boot/vmlinuz-…")
        })
}

fn from_package(package: &str, dir: &Path) -> Result<PathBuf> {
    let unpacked = dir.join("kernel");
    make(&unpacked)?;
    run::must(
        Command::new("apt-get")
            .args(["-q", "download", package])
            .current_dir(dir),
    )?;
    let deb = entry(dir, |name| name.ends_with(".deb"))?;
    run::must(Command::new("dpkg").arg("-x").arg(&deb).arg(&unpacked))?;
    entry(&unpacked.join("boot"), |name| name.starts_with("vmlinuz"))
}

fn entry(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .find(|entry| wanted(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .ok_or_else(|| Error::new(format!("{} has no such file", dir.display())))
}

/// The archive that the kernel unpacks into memory.
fn pack(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("root");
    for folder in [
        "bin", "proc", "sys", "dev", "tmp", "run", "etc", "usr/bin", "specs",
    ] {
        make(&root.join(folder))?;
    }
    let victim = specs::target().join("debug/conformance-victim");
    let mut libraries = BTreeSet::new();
    for (from, to) in [
        (specs::faultbox(), "bin/faultbox"),
        (victim, "bin/conformance-victim"),
        ("/usr/bin/setpriv".into(), "bin/setpriv"),
        ("/bin/busybox".into(), "bin/busybox"),
        (PYTHON.into(), "usr/bin/python3"),
    ] {
        libraries.extend(loaded(&from)?);
        copy(&from, &root.join(to))?;
    }
    let library = run::output(
        Command::new(PYTHON).args(["-c", "import os; print(os.path.dirname(os.__file__))"]),
    )?;
    let library = Path::new(library.trim());
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    copy_tree(library, &inside(library))?;
    for module in std::fs::read_dir(library.join("lib-dynload"))
        .into_iter()
        .flatten()
        .flatten()
    {
        libraries.extend(loaded(&module.path())?);
    }
    for library in &libraries {
        copy(library, &inside(library))?;
    }
    copy_tree(&run::root().join("specs/conformance"), &root.join("specs"))?;
    for (name, text) in [
        ("init", INIT),
        (
            "etc/passwd",
            "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
        ),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ] {
        let path = root.join(name);
        std::fs::write(&path, text).map_err(|e| failed(&path, &e))?;
    }
    let archive = dir.join("archive");
    let script =
        r#"chmod 755 "$1/init" && cd "$1" && find . | cpio --quiet -o -H newc | gzip -1 >"$2""#;
    run::must(
        Command::new("sh")
            .args(["-c", script, "sh"])
            .args([&root, &archive]),
    )?;
    Ok(archive)
}

/// The libraries that a program loads, as ldd(1) tells; none of one that is static.
fn loaded(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|e| run::cannot_run(&Command::new("ldd"), &e))?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        make(folder)?;
    }
    std::fs::copy(from, to).map_err(|e| failed(from, &e))?;
    Ok(())
}

/// Everything below, but what only tests and caches of Python need.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    make(to)?;
    for entry in std::fs::read_dir(from).map_err(|e| failed(from, &e))? {
        let entry = entry.map_err(|e| failed(from, &e))?;
        let (path, name) = (entry.path(), entry.file_name());
        let skipped = ["test", "__pycache__", "idlelib", "tkinter", "target"];
        if skipped.iter().any(|s| name == *s) || name.to_string_lossy().starts_with("config-") {
            continue;
        }
        match path.is_dir() {
            true => copy_tree(&path, &to.join(name))?,
            // A dangling link is nobody's library.
            false if path.exists() => copy(&path, &to.join(name))?,
            false => {}
        }
    }
    Ok(())
}

/// Runs the machine to its end, showing all that it says, and counts the specs that ended well.
fn boot(kernel: &Path, archive: &Path) -> Result {
    // coreutils' timeout: a machine that hangs is an error.
    let mut qemu = Command::new("timeout");
    qemu.args(["3600", "qemu-system-x86_64"]);
    qemu.args([
        "-m",
        "2048",
        "-smp",
        "2",
        "-nographic",
        "-no-reboot",
        "-nic",
        "none",
    ]);
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(archive);
    qemu.args(["-append", "console=ttyS0 panic=-1 quiet"]);
    run::say(&qemu);
    let mut child = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| run::cannot_run(&qemu, &e))?;
    let (mut well, mut badly, mut done) = (0, vec![], false);
    let mut reader = BufReader::new(child.stdout.take().expect("its output is a pipe"));
    let mut line = vec![];
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        println!("{text}");
        if let Some((spec, code)) = text
            .strip_prefix("SPEC ")
            .and_then(|rest| rest.split_once(" ended with "))
        {
            match code {
                "0" => well += 1,
                _ => badly.push(spec.to_owned()),
            }
        }
        done |= text == "ALL SPECS DONE";
        line.clear();
    }
    let status = child.wait().map_err(|e| run::cannot_run(&qemu, &e))?;
    if !done {
        return Err(Error::new(format!(
            "the machine ended before the last spec ({status})"
        )));
    }
    println!(
        "{well} specs passed, {} did not: {}",
        badly.len(),
        badly.join(" ")
    );
    Ok(badly.is_empty())
}
