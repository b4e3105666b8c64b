//! How many descriptors a worker may have, and its services.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The soft limit that this process was started with.
static GIVEN: OnceLock<u64> = OnceLock::new();

/// Lifts this process's soft limit to the hard one: proxies hold two descriptors per connection, and a cut one per socket. Select(2) is
/// why soft limits are low, and nothing here uses it.
pub fn lift_limit() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    GIVEN.get_or_init(|| soft);
    // A worker that keeps the lower limit works, for fewer connections.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
}

/// What a service gets: the limits that its run was started with.
///
/// # Errors
/// As getrlimit(2).
pub fn given() -> std::io::Result<libc::rlimit> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(libc::rlimit {
        rlim_cur: GIVEN.get().copied().unwrap_or(soft),
        rlim_max: hard,
    })
}
