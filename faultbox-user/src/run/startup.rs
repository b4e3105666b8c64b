//! Starting a test's services in the order of what they depend on, and stopping them in the opposite one.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::host::{Managed, TestHost};
use super::services::health::CommandSetting;
use super::services::service::Stopped;
use super::worker::{BODY_STACK, StopFlag};
use crate::plan::report::Blame;
use crate::plan::{Reason, ServiceDecl};
use crate::spec::{Host, LoadedSpec, Transcript};

/// How soon a seed function hears that the run wants to stop.
const TICK: Duration = Duration::from_millis(50);

/// Starts every service once those it depends on are ready and seeded, for which each has `limit`; independent ones at the same time.
///
/// # Errors
/// The first that did not start, was not ready in time, or could not be seeded.
pub(super) fn start(
    spec: &Arc<LoadedSpec>,
    host: &Arc<TestHost>,
    transcript: &Arc<Transcript>,
    limit: Duration,
    stop: &StopFlag,
) -> Result<(), Reason> {
    let progress = Mutex::new(Progress::default());
    let changed = Condvar::new();
    let order = spec.topology().start_order();
    std::thread::scope(|scope| {
        for decl in &order {
            let (progress, changed, host) = (&progress, &changed, host.clone());
            let body = move || {
                let _told = Told { progress, changed };
                if !wait_for(progress, changed, &decl.depends_on) {
                    return;
                }
                let local = host
                    .services()
                    .iter()
                    .find(|m| m.service.decl().name == decl.name);
                let up = match local {
                    Some(managed) => host.bring_up(managed),
                    None => host.await_remote(decl),
                }
                .and_then(|()| seed(spec, &host, transcript, &decl.name, limit, stop));
                let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
                match up {
                    Ok(()) => progress.ready.push(decl.name.clone()),
                    Err(reason) => {
                        progress.failed.get_or_insert(reason);
                    }
                }
                changed.notify_all();
            };
            let spawned = std::thread::Builder::new()
                .name(format!("start {}", decl.name))
                .stack_size(BODY_STACK)
                .spawn_scoped(scope, body);
            if let Err(e) = spawned {
                let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
                progress.failed.get_or_insert(Reason::new(
                    format!("cannot start a thread: {e}"),
                    Blame::Environment,
                ));
                changed.notify_all();
            }
        }
    });
    match progress
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .failed
    {
        Some(reason) => Err(reason),
        None => Ok(()),
    }
}

/// Calls the service's seed function, if it has one. A function cannot be stopped: the thread of one that takes too long ends with the
/// process.
fn seed(
    spec: &Arc<LoadedSpec>,
    host: &Arc<TestHost>,
    transcript: &Arc<Transcript>,
    service: &str,
    limit: Duration,
    stop: &StopFlag,
) -> Result<(), Reason> {
    if !spec.is_seeded(service) {
        return Ok(());
    }
    let (said, heard) = channel();
    let work = {
        let (spec, transcript, service) = (spec.clone(), transcript.clone(), service.to_owned());
        let host: Arc<dyn Host> = host.clone();
        move || {
            let _ = said.send(spec.seed_service(&service, host, &transcript));
        }
    };
    std::thread::Builder::new()
        .name(format!("seed {service}"))
        .stack_size(BODY_STACK)
        .spawn(work)
        .map_err(|e| Reason::new(format!("cannot start a thread: {e}"), Blame::Environment))?;
    let deadline = Instant::now() + limit;
    loop {
        match heard.recv_timeout(TICK) {
            Ok(done) => return done,
            Err(RecvTimeoutError::Disconnected) => {
                let what = format!("the seed of service `{service}` has panicked");
                return Err(Reason::new(what, Blame::Internal));
            }
            Err(RecvTimeoutError::Timeout) if stop.is_set() => {
                return Err(Reason::new("interrupted", Blame::Environment));
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                let what = format!(
                    "the seed of service `{service}` did not end within {}, the test's time-out",
                    faultbox_contract::duration::show(limit)
                );
                return Err(Reason::new(what, Blame::Test));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Tells those that wait when a thread has panicked: nobody else would.
struct Told<'a> {
    progress: &'a Mutex<Progress>,
    changed: &'a Condvar,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
            let reason = Reason::new("starting a service has panicked", Blame::Internal);
            progress.failed.get_or_insert(reason);
            self.changed.notify_all();
        }
    }
}

#[derive(Default)]
struct Progress {
    ready: Vec<String>,
    failed: Option<Reason>,
}

/// Waits until all of `names` are ready; false once anything has failed. Ends because every service ends up in one or the other.
fn wait_for(progress: &Mutex<Progress>, changed: &Condvar, names: &[String]) -> bool {
    let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if progress.failed.is_some() {
            return false;
        }
        if names.iter().all(|n| progress.ready.contains(n)) {
            return true;
        }
        progress = changed
            .wait(progress)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

/// Stops each service after those that depend on it; the ones that are free of each other at the same time. Returns notes.
pub(super) fn stop(host: &TestHost) -> Vec<String> {
    let mut left: Vec<&Arc<Managed>> = host.services().iter().collect();
    let mut notes = vec![];
    while !left.is_empty() {
        let (now, later): (Vec<&Arc<Managed>>, Vec<_>) = left.iter().partition(|m| {
            let name = &m.service.decl().name;
            !left
                .iter()
                .any(|other| other.service.decl().depends_on.contains(name))
        });
        // Cycles were refused at load; if there is one all the same, everything left goes at once.
        let (now, later) = if now.is_empty() {
            (left.clone(), vec![])
        } else {
            (now, later)
        };
        let stopped: Vec<Stopped> = std::thread::scope(|scope| {
            let threads: Vec<_> = now
                .iter()
                .map(|m| scope.spawn(|| m.service.stop()))
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().unwrap_or(Stopped::Killed))
                .collect()
        });
        for (managed, stopped) in now.iter().zip(stopped) {
            let decl = managed.service.decl();
            if stopped == Stopped::Killed && !decl.stop_timeout.is_zero() {
                notes.push(format!(
                    "service `{}` did not stop within {} of {} and was killed",
                    decl.name,
                    faultbox_contract::duration::show(decl.stop_timeout),
                    Signal::try_from(decl.stop_signal).map_or("its signal", Signal::as_str)
                ));
            }
        }
        left = later;
    }
    notes
}

impl TestHost {
    /// Waits until a service that runs elsewhere is ready.
    fn await_remote(&self, decl: &ServiceDecl) -> Result<(), Reason> {
        self.checker().wait(
            decl,
            None,
            &CommandSetting {
                env: &[],
                account: None,
            },
        )
    }
}
