//! The threads that carry connections.
//!
//! A connection stays on the thread that it was given when it was accepted: nothing about it is handed from one CPU to another, and a
//! thread that is busy picks up what has come on all of its connections with one epoll_wait(2).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;

/// Where a proxy's connections are carried. The default has no threads of its own: they stay where they were accepted.
#[derive(Debug, Clone, Default)]
pub struct Lanes {
    all: Arc<[Lane]>,
    /// Where connections are accepted.
    home: usize,
}

#[derive(Debug)]
struct Lane {
    thread: Handle,
    /// Connections that are alive.
    carried: Arc<AtomicUsize>,
}

/// A connection's place on a thread, until it is dropped.
#[derive(Debug)]
pub struct Seat {
    carried: Arc<AtomicUsize>,
    elsewhere: Option<Handle>,
}

impl Lanes {
    /// A lane for each runtime; each is to be driven by one thread.
    pub fn new(threads: impl IntoIterator<Item = Handle>) -> Lanes {
        let lane = |thread| Lane {
            thread,
            carried: Arc::default(),
        };
        Lanes {
            all: threads.into_iter().map(lane).collect(),
            home: 0,
        }
    }

    /// The same lanes, for the `n`th proxy: proxies take turns in where they accept.
    #[must_use]
    pub fn homed(&self, n: usize) -> Lanes {
        Lanes {
            all: self.all.clone(),
            home: n.checked_rem(self.all.len()).unwrap_or(0),
        }
    }

    /// Where the proxy itself runs, and accepts; `None` if there are no threads of its own.
    pub fn home(&self) -> Option<&Handle> {
        self.all.get(self.home).map(|lane| &lane.thread)
    }

    /// A place on the thread that carries the fewest connections; at home if no other carries fewer, since handing a connection over
    /// costs a wake-up. `None` if there are no threads of its own.
    pub fn seat(&self) -> Option<Seat> {
        let load = |lane: &Lane| lane.carried.load(Ordering::Relaxed);
        let home = self.all.get(self.home)?;
        let least = self.all.iter().min_by_key(|lane| load(lane))?;
        let (lane, elsewhere) = match load(least) < load(home) {
            true => (least, Some(least.thread.clone())),
            false => (home, None),
        };
        lane.carried.fetch_add(1, Ordering::Relaxed);
        Some(Seat {
            carried: lane.carried.clone(),
            elsewhere,
        })
    }
}

impl Seat {
    /// The thread, if it is another than the one that accepts.
    pub fn elsewhere(&self) -> Option<&Handle> {
        self.elsewhere.as_ref()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.carried.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime needs nothing")
    }

    fn loads(lanes: &Lanes) -> Vec<usize> {
        let load = |lane: &Lane| lane.carried.load(Ordering::Relaxed);
        lanes.all.iter().map(load).collect()
    }

    #[test]
    fn connections_spread_evenly_and_begin_at_home() {
        let runtimes = [runtime(), runtime(), runtime()];
        let lanes = Lanes::new(runtimes.iter().map(|r| r.handle().clone()));
        let (second, sixth) = (lanes.homed(1), lanes.homed(5));
        let first = second.seat().expect("there are lanes");
        assert_eq!(loads(&lanes), [0, 1, 0]);
        assert!(first.elsewhere().is_none());
        let mut seats: Vec<Seat> = (0..5).map(|_| sixth.seat().expect("lanes")).collect();
        assert_eq!(loads(&lanes), [2, 2, 2], "all proxies count together");
        assert!(seats[0].elsewhere().is_none() && seats[1].elsewhere().is_some());
        // A client that connects anew for each request stays where it was accepted.
        seats.clear();
        drop(first);
        for _ in 0..4 {
            let seat = second.seat().expect("there are lanes");
            assert_eq!(loads(&lanes), [0, 1, 0]);
            drop(seat);
        }
        assert_eq!(loads(&lanes), [0, 0, 0]);
    }

    #[test]
    fn without_threads_there_are_no_seats() {
        let none = Lanes::default().homed(3);
        assert!(none.home().is_none() && none.seat().is_none());
    }
}
