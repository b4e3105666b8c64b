//! Severing the connections that a service has made: `existing="reset"` when `connect=deny` is armed, and a partition that rejects.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use serde_json::json;

use crate::events::EventLog;
use crate::plan::{Dest, Existing, SyscallAction};
use crate::sys::{pidfd, procfs, socket};

use super::ArmedSyscall;

/// Does this rule sever connections when it is armed?
pub fn applies(rule: &ArmedSyscall) -> bool {
    let rule = &rule.rule;
    rule.existing == Existing::Reset
        && matches!(rule.action, SyscallAction::Deny { .. })
        && rule.syscalls.contains(&"connect")
}

/// Severs the outgoing TCP connections of the service whose processes are `tree`: those to `dest`, or all. `fault` is who wants it.
pub fn sever(service: &str, tree: &[i32], dest: Option<&Dest>, fault: &str, log: &EventLog) {
    let mut listening = HashSet::new();
    let mut connections: Vec<(i32, i32, OwnedFd, SocketAddr, SocketAddr)> = vec![];
    for &pid in tree {
        let Ok(process) = pidfd::open(pid) else {
            continue;
        };
        for fd in procfs::fds(pid) {
            let link = procfs::FdLink::new(pid, fd);
            if !link
                .read()
                .is_ok_and(|l| l.to_string_lossy().starts_with("socket:"))
            {
                continue;
            }
            let Ok(copy) = pidfd::get_fd(process.as_fd(), fd) else {
                continue;
            };
            if !socket::is_stream(copy.as_fd()) {
                continue;
            }
            let Some(local) = socket::local(copy.as_fd()) else {
                continue; // not an IP socket
            };
            if socket::is_listening(copy.as_fd()) {
                listening.insert(local.port());
            } else if let Some(peer) = socket::peer(copy.as_fd()) {
                connections.push((pid, fd, copy, local, peer));
            }
        }
    }
    for (pid, fd, copy, local, peer) in connections {
        // A connection that was accepted has the listening socket's port. Without `dest=`, one to itself is nobody's dependency.
        let accepted = listening.contains(&local.port());
        let to_itself = listening.contains(&peer.port())
            && peer.ip().to_canonical() == local.ip().to_canonical();
        let selected = match dest {
            Some(dest) => dest.contains(peer),
            None => !to_itself,
        };
        // Inherited copies of one socket sever once; the others find no peer any more.
        if !accepted
            && selected
            && socket::peer(copy.as_fd()).is_some()
            && socket::sever(copy.as_fd()).is_ok()
        {
            log.record(
                "connection_reset",
                Some(service),
                json!({"fault": fault, "pid": pid, "fd": fd, "peer": peer.to_string()}),
            );
        }
    }
}
