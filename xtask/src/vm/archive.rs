//! The archive that the kernel unpacks into memory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{INIT, failed, make};
use crate::run;
use crate::{Result, specs};

/// Python's version in Debian's packages stands in its paths.
const PYTHON: &str = "/usr/bin/python3";

/// The archive of this machine's own programs and the libraries that they load.
pub fn native(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("root");
    folders(&root)?;
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
    finish(&root, dir)
}

/// What the first process mounts on, and where programs go.
pub fn folders(root: &Path) -> Result<()> {
    for folder in [
        "bin", "proc", "sys", "dev", "tmp", "run", "etc", "usr/bin", "specs",
    ] {
        make(&root.join(folder))?;
    }
    Ok(())
}

/// Adds the specs and what the first process needs, and packs it all.
pub fn finish(root: &Path, dir: &Path) -> Result<PathBuf> {
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
            .args([root, &archive]),
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

/// Copies a file, its folder made if need be.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
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
