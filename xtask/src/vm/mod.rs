//! `cargo xtask vm`: the specs of the kernel's side and of system calls on another kernel or another processor, in a virtual machine.
//!
//! qemu emulates the processor, so this takes minutes, and nothing of it is timed. The machine has no disk and no network: a kernel, and
//! an archive in memory with Faultbox, the services that the specs fault, and the libraries that these load.

mod aarch64;
mod archive;
mod packages;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use packages::Packages;

use crate::run;
use crate::{Error, Result, setup, specs};

const INIT: &str = include_str!("init.sh");

/// What the machine is, beside its kernel.
struct Machine {
    /// qemu's command, with what says which board.
    qemu: &'static [&'static str],
    /// The device that the kernel writes to.
    console: &'static str,
}

/// The processor that this runs on.
const NATIVE: Machine = Machine {
    qemu: &["qemu-system-x86_64"],
    console: "ttyS0",
};

/// Boots `kernel`: a kernel image, or the name of a Debian package that brings one; without it, Debian's newest.
pub fn run(kernel: Option<&str>) -> Result {
    setup::for_vm()?;
    specs::build()?;
    let dir = fresh("vm")?;
    let image = image(kernel, &Packages::native(), "linux-image-cloud-amd64", &dir)?;
    let archive = archive::native(&dir)?;
    boot(&NATIVE, &image, &archive)
}

/// The same on an emulated 64-bit Arm, which everything is built for first.
pub fn on_aarch64(kernel: Option<&str>) -> Result {
    setup::for_aarch64()?;
    let dir = fresh("vm-aarch64")?;
    let packages = Packages::of("arm64", &dir)?;
    let image = image(kernel, &packages, "linux-image-cloud-arm64", &dir)?;
    let archive = aarch64::archive(&packages, &dir)?;
    boot(&aarch64::MACHINE, &image, &archive)
}

/// An empty folder of this name below cargo's target.
fn fresh(name: &str) -> Result<PathBuf> {
    let dir = specs::target().join(name);
    let _ = std::fs::remove_dir_all(&dir);
    make(&dir)?;
    Ok(dir)
}

fn image(kernel: Option<&str>, packages: &Packages, newest: &str, dir: &Path) -> Result<PathBuf> {
    let package = match kernel {
        Some(path) if Path::new(path).is_file() => return Ok(PathBuf::from(path)),
        Some(package) => package.to_owned(),
        // It depends on the package of the newest version, and on nothing else.
        None => packages
            .dependencies(newest)?
            .into_iter()
            .next()
            .ok_or_else(|| {
                Error::new(format!("apt knows no {newest}")).help(
                    "run apt-get update, or name a kernel image: cargo xtask vm /boot/vmlinuz-…",
                )
            })?,
    };
    let unpacked = dir.join("kernel");
    packages.unpack(&[package], &unpacked)?;
    entry(&unpacked.join("boot"), |name| name.starts_with("vmlinuz"))
}

fn failed(what: &Path, e: &std::io::Error) -> Error {
    Error::new(format!("{}: {e}", what.display()))
}

fn make(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| failed(dir, &e))
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

/// Runs the machine to its end, showing all that it says, and counts the specs that ended well.
fn boot(machine: &Machine, kernel: &Path, archive: &Path) -> Result {
    // coreutils' timeout: a machine that hangs is an error.
    let mut qemu = Command::new("timeout");
    qemu.arg("3600").args(machine.qemu).args([
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
    let console = machine.console;
    qemu.args(["-append", &format!("console={console} panic=-1 quiet")]);
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
            match code.ends_with("as expected") {
                true => well += 1,
                false => badly.push(spec.to_owned()),
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
