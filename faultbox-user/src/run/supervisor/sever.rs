//! Severing the connections that a service has made: `existing="reset"` when `connect=deny` is armed, and a partition that rejects.

use std::os::fd::AsFd;

use serde_json::json;

use crate::events::EventLog;
use crate::plan::{Dest, Existing, SyscallAction};
use crate::sys::socket;

use super::{ArmedSyscall, sockets};

/// Does this rule sever connections when it is armed?
pub fn applies(rule: &ArmedSyscall) -> bool {
    let rule = &rule.rule;
    rule.existing == Existing::Reset
        && matches!(rule.action, SyscallAction::Deny { .. })
        && rule.syscalls.contains(&"connect")
}

/// Severs the outgoing TCP connections of the service whose processes are `tree`: those to `dest`, or all. `fault` is who wants it.
pub fn sever(service: &str, tree: &[i32], dest: Option<&Dest>, fault: &str, log: &EventLog) {
    let sockets = sockets::of(tree);
    for end in &sockets.ends {
        let (local, peer, copy) = (end.local, end.peer, end.copy.as_fd());
        // Without `dest=`, a connection to itself is nobody's dependency.
        let to_itself = sockets.listens_at(peer.port())
            && peer.ip().to_canonical() == local.ip().to_canonical();
        let selected = match dest {
            Some(dest) => dest.contains(peer),
            None => !to_itself,
        };
        // Inherited copies of one socket sever once; the others find no peer any more.
        if !sockets.accepted(end)
            && selected
            && socket::peer(copy).is_some()
            && socket::sever(copy).is_ok()
        {
            log.record(
                "connection_reset",
                Some(service),
                json!({"fault": fault, "pid": end.pid, "fd": end.fd, "peer": peer.to_string()}),
            );
        }
    }
}
