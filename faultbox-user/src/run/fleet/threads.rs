//! The threads that proxies run on: each drives a runtime of its own, so that a connection never changes its CPU's queue.

use std::io;
use std::num::NonZero;

use faultbox_contract::{Lanes, clock};
use tokio::sync::watch;

/// Runs proxies until it is dropped; what they do then ends where it stands.
pub struct Threads {
    lanes: Lanes,
    /// Its end ends the threads.
    _running: watch::Sender<()>,
}

impl Threads {
    /// Starts one for every two CPUs, four at most: a proxy is never more than half of what a request takes, and where all CPUs are
    /// busy, one thread that finds much to do whenever its turn comes costs less, and keeps the slowest requests shorter, than two that
    /// compete with the services for the same CPUs.
    ///
    /// # Errors
    /// What epoll_create1(2), eventfd(2) or clone(2) say.
    pub fn start() -> io::Result<Threads> {
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        clock::start()?;
        let (running, over) = watch::channel(());
        let mut handles = vec![];
        for n in 0..(cpus / 2).clamp(1, 4) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()?;
            handles.push(runtime.handle().clone());
            let mut over = over.clone();
            std::thread::Builder::new()
                .name(format!("proxies-{n}"))
                .spawn(move || {
                    // The sender says nothing: it is gone, or it is not.
                    let _ = runtime.block_on(over.changed());
                    runtime.shutdown_background();
                })?;
        }
        Ok(Threads {
            lanes: Lanes::new(handles),
            _running: running,
        })
    }

    /// Them, as proxies know them.
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }
}
