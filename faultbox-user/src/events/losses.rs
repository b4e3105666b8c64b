//! What a test has not seen, and why.

use super::types::Lack;
pub use crate::plan::Lost;

/// What somebody has asked for, and so may have missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// Events of any type.
    pub events: bool,
    /// Events about system calls: opened files, or the calls themselves.
    pub calls: bool,
    /// How often which call was made.
    pub counts: bool,
}

/// Events that may have been meant by what somebody asked for: how many, if only it were known what they lack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Untold {
    /// Opened files without their path.
    pub paths: u64,
    /// Failed connections without their errno.
    pub errnos: u64,
}

impl Untold {
    /// One more that lacks this.
    pub fn count(&mut self, lack: Lack) {
        match lack {
            Lack::Path => self.paths += 1,
            Lack::Errno => self.errnos += 1,
        }
    }

    /// The more of each.
    #[must_use]
    pub fn max(self, other: Untold) -> Untold {
        Untold {
            paths: self.paths.max(other.paths),
            errnos: self.errnos.max(other.errnos),
        }
    }

    /// Them in words; `None` if there are none.
    pub fn words(self) -> Option<String> {
        let paths = (self.paths > 0).then(|| {
            format!(
                "{} files were opened whose paths nobody could tell any more",
                self.paths
            )
        });
        let errnos = (self.errnos > 0).then(|| {
            format!(
                "{} connections failed, and nobody could tell with which errno",
                self.errnos
            )
        });
        let words: Vec<String> = paths.into_iter().chain(errnos).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }
}

/// What a test has lost altogether.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Events that could not be made or kept: lines of a flood, a full disk.
    pub not_kept: u64,
    /// What was lost on its way.
    pub before: Lost,
}

impl Losses {
    /// How many things of what was asked for are missing, and the causes in words; `None` if nothing is.
    pub fn missed(&self, asked: Asked) -> Option<(u64, String)> {
        let calls = asked.calls || asked.counts;
        let causes = [
            (asked.events, self.not_kept, "could not be kept"),
            (
                asked.events,
                self.before.unread,
                "came faster than they could be read",
            ),
            (
                asked.counts,
                self.before.no_room,
                "found the kernel's table of counts full",
            ),
            (
                calls,
                self.before.no_memory,
                "were of threads that the kernel had no memory to follow",
            ),
            (
                calls,
                self.before.not_run,
                "came while the kernel did not run the programs that see them",
            ),
        ];
        let met: Vec<_> = causes.iter().filter(|(of, n, _)| *of && *n > 0).collect();
        let words: Vec<String> = met.iter().map(|(_, n, why)| format!("{n} {why}")).collect();
        let all = met.iter().map(|(_, n, _)| n).sum();
        (all > 0).then(|| (all, words.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_could_tell_in_words() {
        let mut untold = Untold::default();
        assert_eq!(untold.words(), None);
        untold.count(Lack::Errno);
        assert_eq!(
            untold.words().unwrap(),
            "1 connections failed, and nobody could tell with which errno"
        );
        let both = untold.max(Untold {
            paths: 3,
            errnos: 0,
        });
        assert_eq!(
            both,
            Untold {
                paths: 3,
                errnos: 1
            }
        );
        assert!(both.words().unwrap().starts_with("3 files were opened"));
    }

    #[test]
    fn what_was_not_asked_for_is_not_missed() {
        let losses = Losses {
            not_kept: 1,
            before: Lost {
                unread: 2,
                no_room: 4,
                no_memory: 8,
                not_run: 16,
            },
        };
        let missed = |events, calls, counts| {
            let asked = Asked {
                events,
                calls,
                counts,
            };
            losses.missed(asked)
        };
        assert_eq!(missed(false, false, false), None);
        let (n, words) = missed(true, false, false).unwrap();
        assert_eq!(n, 3);
        assert_eq!(
            words,
            "1 could not be kept, 2 came faster than they could be read"
        );
        assert_eq!(missed(true, true, false).unwrap().0, 27);
        assert_eq!(missed(false, false, true).unwrap().0, 28);
        assert_eq!(
            Losses::default().missed(Asked {
                events: true,
                calls: true,
                counts: true
            }),
            None
        );
    }
}
