//! Where a bench ran: what somebody must know who compares two of them.

use std::fs;

use serde::{Deserialize, Serialize};

/// A machine, and what else it did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// "Linux 6.18.5".
    pub kernel: String,
    /// "x86_64".
    pub arch: String,
    /// The processor's name; empty if the kernel does not tell.
    pub cpu: String,
    /// Cores that may be used.
    pub cores: usize,
    /// The frequency governor of the first core; `None` where there is none, as in most virtual machines.
    pub governor: Option<String>,
    /// The load average of the last minute when it began.
    pub load: f64,
    /// The share of CPU time that the hypervisor gave to others meanwhile.
    pub steal: f64,
}

fn read(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

/// CPU time of the whole machine, in ticks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticks {
    total: u64,
    stolen: u64,
}

impl Ticks {
    /// As of now.
    pub fn now() -> Ticks {
        Ticks::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn parse(stat: &str) -> Ticks {
        let line = stat.lines().next().unwrap_or_default();
        let fields: Vec<u64> = line
            .split_ascii_whitespace()
            .skip(1)
            // Guest time, past the eighth, is in user time already.
            .take(8)
            .filter_map(|f| f.parse().ok())
            .collect();
        Ticks {
            total: fields.iter().sum(),
            stolen: fields.get(7).copied().unwrap_or(0),
        }
    }

    /// The share that was stolen since.
    fn steal_since(self, earlier: Ticks) -> f64 {
        match self.total.saturating_sub(earlier.total) {
            0 => 0.0,
            total => self.stolen.saturating_sub(earlier.stolen) as f64 / total as f64,
        }
    }
}

impl Machine {
    /// This one.
    pub fn this() -> Machine {
        let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
        let info = read("/proc/cpuinfo").unwrap_or_default();
        let cpu = info
            .lines()
            .find_map(|l| l.strip_prefix("model name")?.split_once(": "));
        Machine {
            kernel: format!("Linux {release}"),
            arch: std::env::consts::ARCH.to_owned(),
            cpu: cpu.map(|(_, name)| name.to_owned()).unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            load: read("/proc/loadavg")
                .and_then(|l| l.split(' ').next()?.parse().ok())
                .unwrap_or(0.0),
            steal: 0.0,
        }
    }

    /// The same at the end.
    #[must_use]
    pub fn since(self, began: Ticks) -> Machine {
        Machine {
            steal: Ticks::now().steal_since(began),
            ..self
        }
    }

    /// In one line.
    pub fn line(&self) -> String {
        let governor = match &self.governor {
            Some(governor) => format!("governor {governor}"),
            None => "no governor".to_owned(),
        };
        let cpu = match self.cpu.as_str() {
            "" => String::new(),
            cpu => format!("{cpu}, "),
        };
        format!(
            "{} {}, {cpu}{} cores, {governor}, load {:.1}, steal {:.1} %",
            self.kernel,
            self.arch,
            self.cores,
            self.load,
            self.steal * 100.0
        )
    }

    /// What differs from another machine in a way that figures depend on.
    pub fn differences(&self, other: &Machine) -> Vec<String> {
        let mut all = vec![];
        for (what, here, there) in [
            ("kernel", &self.kernel, &other.kernel),
            ("architecture", &self.arch, &other.arch),
            ("processor", &self.cpu, &other.cpu),
        ] {
            if here != there {
                all.push(format!("{what}: {here}, before {there}"));
            }
        }
        if self.cores != other.cores {
            all.push(format!("cores: {}, before {}", self.cores, other.cores));
        }
        if self.governor != other.governor {
            let name = |m: &Machine| m.governor.clone().unwrap_or_else(|| "none".into());
            all.push(format!("governor: {}, before {}", name(self), name(other)));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_a_share_of_all() {
        let before = Ticks::parse("cpu  10 0 10 80 0 0 0 0 0 0\ncpu0 1\n");
        let after = Ticks::parse("cpu  60 0 20 90 0 0 0 30 50 0\n");
        assert_eq!(after.steal_since(before), 0.3);
        assert_eq!(before.steal_since(before), 0.0);
    }

    #[test]
    fn machines_differ_in_what_counts() {
        let here = Machine::this();
        assert!(here.cores > 0 && here.kernel.len() > "Linux ".len());
        assert_eq!(here.differences(&here), [""; 0]);
        let there = Machine {
            cores: here.cores + 1,
            load: 99.0,
            ..here.clone()
        };
        assert_eq!(here.differences(&there).len(), 1);
    }
}
