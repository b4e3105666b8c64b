//! A 64-bit Arm: Faultbox and what it faults are compiled for it, and Debian's packages give the rest.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::packages::Packages;
use super::{Machine, archive, failed};
use crate::run;
use crate::{Error, Result, specs};

/// qemu's board without any of a real one's oddities, with a processor that has every feature.
pub const MACHINE: Machine = Machine {
    qemu: &[
        "qemu-system-aarch64",
        "-machine",
        "virt",
        "-cpu",
        "max,pauth-impdef=on",
    ],
    console: "ttyAMA0",
};

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LIBRARIES: &str = "usr/lib/aarch64-linux-gnu";
/// What the programs inside load or call.
const PACKAGES: &[&str] = &[
    "libseccomp2",
    "libgcc-s1",
    "busybox-static",
    "util-linux",
    "python3-minimal",
    "libpython3-stdlib",
];

/// Builds everything and packs it with what it needs.
pub fn archive(packages: &Packages, dir: &Path) -> Result<PathBuf> {
    let libraries = dir.join("libraries");
    packages.unpack(
        &["libseccomp2".to_owned(), "libseccomp-dev".to_owned()],
        &libraries,
    )?;
    build(&libraries.join(LIBRARIES))?;
    let root = dir.join("root");
    packages.unpack(&packages.closure(PACKAGES)?, &root)?;
    // The packages of this release still have these apart; /lib holds the loader that programs name.
    for folder in ["bin", "sbin", "lib"] {
        merge(&root, folder)?;
    }
    archive::folders(&root)?;
    let built = specs::target().join(TARGET).join("release");
    for name in ["faultbox", "conformance-victim"] {
        archive::copy(&built.join(name), &root.join("bin").join(name))?;
    }
    archive::finish(&root, dir)
}

/// Moves a folder's entries into that of the same name below /usr, and puts a link in its place.
fn merge(root: &Path, folder: &str) -> Result<()> {
    let (apart, merged) = (root.join(folder), root.join("usr").join(folder));
    if apart.is_dir() && !apart.is_symlink() {
        run::must(
            Command::new("cp")
                .arg("-a")
                .arg(apart.join("."))
                .arg(&merged),
        )?;
        std::fs::remove_dir_all(&apart).map_err(|e| failed(&apart, &e))?;
    }
    if !apart.exists() {
        std::os::unix::fs::symlink(format!("usr/{folder}"), &apart)
            .map_err(|e| failed(&apart, &e))?;
    }
    Ok(())
}

fn build(libraries: &Path) -> Result<()> {
    // Where Rust is a distribution's, its library for other targets is a package.
    if !run::quietly("rustup", &["target", "add", TARGET]) {
        return Err(
            Error::new(format!("rustup could not add the target {TARGET}"))
                .help("Rust's library for it is needed; install Rust by rustup"),
        );
    }
    let mut build = run::cargo();
    build
        .args(["build", "--release", "--target", TARGET])
        .args(["--package", "faultbox", "--package", "conformance-victim"])
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", COMPILER)
        .env("CC_aarch64_unknown_linux_gnu", COMPILER)
        .env("LIBSECCOMP_LIB_PATH", libraries)
        .env("LIBSECCOMP_LINK_TYPE", "dylib");
    run::must(&mut build)
}

const COMPILER: &str = "aarch64-linux-gnu-gcc";
