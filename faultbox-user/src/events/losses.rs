//! What a test has not seen, and why.

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
