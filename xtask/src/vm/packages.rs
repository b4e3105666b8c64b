//! Debian's packages, of this machine's architecture or another, unpacked without installing them.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{entry, failed, make};
use crate::Result;
use crate::run;

/// Where packages come from.
pub struct Packages {
    /// apt's configuration, if it is not the machine's.
    config: Option<PathBuf>,
}

impl Packages {
    /// This machine's.
    pub fn native() -> Packages {
        Packages { config: None }
    }

    /// Those of another architecture, as the machine's own sources have them; what apt knows of them is kept in `dir`.
    pub fn of(architecture: &str, dir: &Path) -> Result<Packages> {
        let state = dir.join("apt");
        for folder in ["lists/partial", "cache/archives/partial", "state"] {
            make(&state.join(folder))?;
        }
        let config = state.join("apt.conf");
        let at = state.display();
        let text = format!(
            "APT::Architecture \"{architecture}\";
APT::Architectures \"{architecture}\";
Dir::State \"{at}/state\";
Dir::State::lists \"{at}/lists\";
Dir::State::status \"{at}/status\";
Dir::Cache \"{at}/cache\";
"
        );
        std::fs::write(state.join("status"), "").map_err(|e| failed(&state, &e))?;
        std::fs::write(&config, text).map_err(|e| failed(&config, &e))?;
        let packages = Packages {
            config: Some(config),
        };
        run::must(packages.apt("apt-get").args(["-q", "update"]))?;
        Ok(packages)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        if let Some(config) = &self.config {
            command.env("APT_CONFIG", config);
        }
        command
    }

    /// What a package depends on, without what that depends on.
    pub fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let listed = run::output(self.apt("apt-cache").args(["depends", package]))?;
        let names = listed
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(str::to_owned).collect())
    }

    /// These packages and all that they depend on.
    pub fn closure(&self, packages: &[&str]) -> Result<Vec<String>> {
        let only = [
            "depends",
            "--recurse",
            "--important",
            "--no-conflicts",
            "--no-breaks",
            "--no-replaces",
        ];
        let listed = run::output(self.apt("apt-cache").args(only).args(packages))?;
        // A package's line is not indented; `<one>` stands for whichever provides it.
        let names = listed
            .lines()
            .filter(|line| !line.starts_with([' ', '|', '<']));
        Ok(names.map(str::to_owned).collect())
    }

    /// Unpacks packages into a folder.
    pub fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        make(into)?;
        let fetched = into.with_extension("packages");
        make(&fetched)?;
        run::must(
            self.apt("apt-get")
                .args(["-q", "download"])
                .args(packages)
                .current_dir(&fetched),
        )?;
        for package in packages {
            // Their names end at the first underscore.
            let file = entry(&fetched, |name| {
                name.split('_').next() == Some(package.as_str())
            })?;
            run::must(Command::new("dpkg").arg("-x").arg(file).arg(into))?;
        }
        Ok(())
    }
}
