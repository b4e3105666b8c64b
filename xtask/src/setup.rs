//! What the machine must have, and installing what it lacks.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::run;
use crate::{Error, Result};

/// How to tell that something is there.
enum Probe {
    /// A program in PATH.
    Program(&'static str),
    /// A library that the C linker finds.
    Library(&'static str),
    /// A file.
    File(&'static str),
    /// A program in a folder per version: folder, what stands between.
    Versioned(&'static str, &'static str),
    /// A Python module.
    PythonModule(&'static str),
}

impl Probe {
    fn found(&self) -> bool {
        match self {
            Probe::Program(name) => run::has_program(name),
            Probe::Library(name) => links_with(name),
            Probe::File(path) => Path::new(path).exists(),
            Probe::Versioned(folder, rest) => std::fs::read_dir(folder)
                .into_iter()
                .flatten()
                .flatten()
                .any(|version| version.path().join(rest).exists()),
            Probe::PythonModule(name) => {
                run::quietly("python3", &["-c", &format!("import {name}")])
            }
        }
    }
}

/// One thing the machine must have.
struct Need {
    probe: Probe,
    /// The package that brings it, on Debian and Ubuntu.
    package: &'static str,
    why: &'static str,
}

const fn need(probe: Probe, package: &'static str, why: &'static str) -> Need {
    Need {
        probe,
        package,
        why,
    }
}

use Probe::{File, Library, Program, PythonModule, Versioned};

/// What building takes.
const BUILD: &[Need] = &[
    need(Program("cc"), "gcc", "Rust links with it"),
    need(
        File("/usr/include/stdio.h"),
        "libc6-dev",
        "Rust links with its start files",
    ),
    need(
        Library("seccomp"),
        "libseccomp-dev",
        "it names system calls and builds the filters",
    ),
];

/// What the tests run besides: real servers, and real clients in their own languages.
const TESTS: &[Need] = &[
    need(
        Versioned("/usr/lib/postgresql", "bin/postgres"),
        "postgresql",
        "the server that the postgres proxy and the orders example are tested against",
    ),
    need(
        Versioned("/usr/lib/postgresql", "bin/pgbench"),
        "postgresql-contrib",
        "a client in simple, extended and prepared mode",
    ),
    need(Program("psql"), "postgresql-client", "a client"),
    need(
        Program("mariadbd"),
        "mariadb-server",
        "the server that the mysql proxy is tested against",
    ),
    need(Program("mariadb"), "mariadb-client", "a client"),
    need(
        Program("sysbench"),
        "sysbench",
        "a client of MySQL in text and prepared mode",
    ),
    need(
        File("/usr/share/java/mariadb-java-client.jar"),
        "libmariadb-java",
        "its JDBC client",
    ),
    need(
        Program("nginx"),
        "nginx",
        "the server that the http proxy is tested against",
    ),
    need(
        Program("redis-server"),
        "redis-server",
        "the server that the redis proxy is tested against",
    ),
    need(
        Program("redis-benchmark"),
        "redis-tools",
        "clients, one of them in deep pipelines",
    ),
    need(Program("curl"), "curl", "a client"),
    need(
        File("/usr/sbin/dnsmasq"),
        "dnsmasq-base",
        "a server that the dns proxy is tested against",
    ),
    need(File("/usr/sbin/named"), "bind9", "another"),
    need(File("/usr/sbin/unbound"), "unbound", "a resolver"),
    need(Program("dig"), "bind9-dnsutils", "a client"),
    need(Program("dnsperf"), "dnsperf", "a client that asks much"),
    need(
        Program("nghttp"),
        "nghttp2-client",
        "clients of HTTP/2: nghttp, h2load",
    ),
    need(
        Program("nghttpd"),
        "nghttp2-server",
        "the server that the http2 proxy is tested against",
    ),
    need(
        Program("nghttpx"),
        "nghttp2-proxy",
        "a server that grants upgrades to h2c",
    ),
    need(
        Program("etcd"),
        "etcd-server",
        "a server that the grpc proxy is tested against",
    ),
    need(Program("etcdctl"), "etcd-client", "a client"),
    need(
        Program("openssl"),
        "openssl",
        "a certificate for a PostgreSQL that encrypts",
    ),
    need(
        Program("python3"),
        "python3",
        "a client, and a service to fault",
    ),
    need(
        PythonModule("ensurepip"),
        "python3-venv",
        "a place of their own for psycopg, asyncpg and redis-py",
    ),
    need(
        PythonModule("requests"),
        "python3-requests",
        "a client that keeps connections alive",
    ),
    need(
        Program("node"),
        "nodejs",
        "a client, and a service to fault",
    ),
    need(
        Program("npm"),
        "npm",
        "it fetches node-postgres and ioredis",
    ),
    need(
        Program("javac"),
        "default-jdk-headless",
        "a client, and a service to fault",
    ),
    need(
        File("/usr/share/java/postgresql.jar"),
        "libpostgresql-jdbc-java",
        "the JDBC client",
    ),
    need(
        Program("go"),
        "golang-go",
        "a service to fault whose runtime makes its own threads",
    ),
    need(
        Program("strace"),
        "strace",
        "a second opinion on what a process calls",
    ),
    need(
        Program("setpriv"),
        "util-linux",
        "PostgreSQL refuses to run as root",
    ),
    need(Program("git"), "git", "it lists the files for tidy"),
];

/// What building the kernel's programs takes, which only who changes them needs.
const EBPF: &[Need] = &[
    need(
        File("/usr/bin/rustc"),
        "rustc-web",
        "a compiler that may build core for BPF",
    ),
    need(
        File("/usr/bin/cargo"),
        "cargo-web",
        "it drives that compiler",
    ),
    need(
        File("/usr/lib/rustlib/src/rust/library/core"),
        "rust-web-src",
        "the sources of core",
    ),
    need(
        File("/usr/lib/llvm-22/bin/llvm-objcopy"),
        "llvm-22",
        "it strips the object and names its symbols",
    ),
    need(
        File("/usr/lib/llvm-22/bin/llvm-config"),
        "llvm-22-dev",
        "bpf-linker links with it",
    ),
];

/// What booting another kernel takes.
const VM: &[Need] = &[
    need(
        Program("qemu-system-x86_64"),
        "qemu-system-x86",
        "the machine",
    ),
    need(
        Program("busybox"),
        "busybox-static",
        "the tools inside the machine",
    ),
    need(Program("cpio"), "cpio", "it packs what the kernel unpacks"),
    need(Program("python3"), "python3", "a service to fault"),
];

/// What another processor takes besides.
const AARCH64: &[Need] = &[
    need(
        Program("qemu-system-aarch64"),
        "qemu-system-arm",
        "the machine",
    ),
    need(
        Program("aarch64-linux-gnu-gcc"),
        "gcc-aarch64-linux-gnu",
        "it links for that processor",
    ),
    need(
        File("/usr/aarch64-linux-gnu/include/stdio.h"),
        "libc6-dev-arm64-cross",
        "what it links with",
    ),
    need(Program("cpio"), "cpio", "it packs what the kernel unpacks"),
];

/// Makes sure that a 64-bit Arm can be built for and booted.
pub fn for_aarch64() -> Result<()> {
    install(BUILD.iter().chain(AARCH64))
}

/// Makes sure that another kernel can be booted.
pub fn for_vm() -> Result<()> {
    install(BUILD.iter().chain(VM))
}

/// What the bench runs besides what the tests do: other proxies.
const BENCH: &[Need] = &[
    need(
        File("/usr/sbin/haproxy"),
        "haproxy",
        "a proxy to compare with",
    ),
    need(
        File("/usr/lib/nginx/modules/ngx_stream_module.so"),
        "libnginx-mod-stream",
        "another: nginx for byte streams",
    ),
    need(
        Program("fiu-run"),
        "fiu-utils",
        "it injects faults into functions of the C library, by LD_PRELOAD",
    ),
    need(
        Program("bpftrace"),
        "bpftrace",
        "it traces system calls by eBPF",
    ),
    need(Program("wrk"), "wrk", "it loads an HTTP server"),
];

/// Makes sure that building, testing and the bench work.
pub fn for_bench() -> Result<()> {
    install(BUILD.iter().chain(TESTS).chain(BENCH))
}

/// What counting instructions takes.
const INSTRUCTIONS: &[Need] = &[need(
    Program("valgrind"),
    "valgrind",
    "its callgrind counts instructions, the same on every machine",
)];

/// Makes sure that instructions can be counted.
pub fn for_instructions() -> Result<()> {
    install(BUILD.iter().chain(INSTRUCTIONS))
}

/// Makes sure that the kernel's programs can be built.
pub fn for_ebpf() -> Result<()> {
    install(BUILD.iter().chain(EBPF))
}

/// Makes sure that building works.
pub fn for_build() -> Result<()> {
    install(BUILD.iter())
}

/// Makes sure that building and testing work.
pub fn for_tests() -> Result<()> {
    install(BUILD.iter().chain(TESTS))
}

fn install<'a>(needs: impl Iterator<Item = &'a Need>) -> Result<()> {
    let missing: Vec<&Need> = needs.filter(|n| !n.probe.found()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("This machine lacks:");
    for need in &missing {
        println!("  {:26} {}", need.package, need.why);
    }
    let packages: Vec<&str> = missing.iter().map(|n| n.package).collect();
    let by_hand = format!("apt-get install {}", packages.join(" "));
    if !run::has_program("apt-get") {
        return Err(
            Error::new("there is no apt-get here, so nothing can be installed").help(
                "install what the list above names, under the names that your distribution uses",
            ),
        );
    }
    let mut command = match as_root()? {
        Some(command) => command,
        None => {
            return Err(Error::new(
                "installing needs root, and there is no sudo that would let us",
            )
            .help(format!("as root: {by_hand}")));
        }
    };
    if std::io::stdin().is_terminal() {
        print!("Install them now by `{by_hand}`? [Y/n] ");
        let _ = std::io::stdout().flush();
        let mut answer = String::new();
        let _ = std::io::stdin().read_line(&mut answer);
        if !matches!(answer.trim(), "" | "y" | "Y" | "yes") {
            return Err(Error::new("nothing was installed").help(by_hand));
        }
    }
    command.args(["sh", "-c", APT, "apt"]).args(&packages);
    println!("\x1b[1m$ {by_hand}\x1b[0m");
    let status = command
        .stdin(Stdio::inherit())
        .status()
        .map_err(|e| run::cannot_run(&command, &e))?;
    if !status.success() {
        return Err(Error::new(format!("`{by_hand}` failed")).help("its own output above says why"));
    }
    match missing.iter().find(|n| !n.probe.found()) {
        None => Ok(()),
        Some(need) => Err(Error::new(format!(
            "{} was installed, and what it should bring is still not there",
            need.package
        ))),
    }
}

/// Installs without starting any server: Debian's maintainer scripts ask policy-rc.d, and 101 means "do not".
const APT: &str = r#"set -e
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
# A broken third-party list is no reason to stop: the install below tells.
apt-get -q update || echo "apt-get update failed; going on with the lists that are there" >&2
apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 install "$@"
"#;

/// A command prefix that runs the rest as root, if that is possible.
fn as_root() -> Result<Option<Command>> {
    if run::is_root() {
        return Ok(Some(Command::new("env")));
    }
    let mut sudo = Command::new("sudo");
    // Where nobody can type a password, sudo must not wait for one.
    if !std::io::stdin().is_terminal() {
        sudo.arg("-n");
        if !run::quietly("sudo", &["-n", "true"]) {
            return Ok(None);
        }
    }
    Ok(run::has_program("sudo").then_some(sudo))
}

/// Links an empty program with the library. Headers are not needed.
fn links_with(library: &str) -> bool {
    let Ok(mut cc) = Command::new("cc")
        .args(["-xc", "-", "-o", "/dev/null", &format!("-l{library}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
    else {
        return false;
    };
    if let Some(mut stdin) = cc.stdin.take() {
        let _ = stdin.write_all(b"int main(void) { return 0; }\n");
    }
    cc.wait().is_ok_and(|s| s.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_tell_what_is_there() {
        assert!(Program("sh").found() && !Program("no-such-program").found());
        assert!(File("/proc/self").found() && !File("/no/such/file").found());
        assert!(Versioned("/proc", "cmdline").found() && !Versioned("/proc", "no-such").found());
        assert!(Library("c").found() && !Library("no_such_library").found());
    }

    #[test]
    fn every_need_has_a_package_and_a_reason() {
        for need in BUILD
            .iter()
            .chain(TESTS)
            .chain(EBPF)
            .chain(VM)
            .chain(BENCH)
            .chain(INSTRUCTIONS)
        {
            assert!(!need.package.is_empty() && !need.why.is_empty());
        }
    }
}
