//! What the supervisor decides about a trapped call: the part of it that is our own code.

use std::hint::black_box;
use std::sync::Arc;

use faultbox::plan::{Existing, SyscallAction, SyscallRule};
use faultbox::run::supervisor::{ArmedSyscall, Rehearsal};
use faultbox::sys::names;
use faultbox_contract::{Dialect, Glob, TriggerSpec};

use crate::lab::{COUNTED, counted, counting_begins};

/// Its name among the kinds of traffic.
pub const NAME: &str = "syscall";

/// A write of a database to its log.
const PATH: &[u8] = b"/var/lib/postgresql/15/main/pg_wal/000000010000000000000001";

/// `write=deny("EIO", path=…)`, for a file that nobody writes.
fn rule(id: u64) -> Arc<ArmedSyscall> {
    let rule = SyscallRule {
        key: "write".to_owned(),
        syscalls: vec!["write", "pwrite64"],
        action: SyscallAction::Deny {
            errno: 5,
            name: "EIO",
        },
        trigger: TriggerSpec::default(),
        path: Some(
            Glob::new(&format!("/var/lib/postgresql/**/base/{id}"), Dialect::Path)
                .expect("a pattern"),
        ),
        on: None,
        dest: None,
        existing: Existing::Keep,
        label: None,
        text: String::new(),
    };
    Arc::new(ArmedSyscall::new(id, format!("f{id}"), Arc::new(rule), 7))
}

/// So many decisions under so many rules that do not match.
///
/// # Panics
/// One of them matches.
pub fn run(rules: usize) -> u32 {
    let rules: Vec<_> = (1..=rules as u64).map(rule).collect();
    let mut rehearsal = Rehearsal::new(&rules, PATH);
    let nr = names::syscall_number("pwrite64").expect("every Linux has it");
    // Room for what a decision keeps is made once.
    let before = rehearsal.passes(nr);
    counting_begins();
    let mut passed = before;
    counted(|| {
        for _ in 0..COUNTED {
            passed &= rehearsal.passes(black_box(nr));
        }
    });
    assert!(passed, "a rule matches");
    COUNTED
}
