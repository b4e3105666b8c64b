//! Starting a test's services in the order of what they depend on, and stopping them in the opposite one.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use nix::sys::signal::Signal;

use super::host::{Managed, TestHost};
use super::services::health::CommandSetting;
use super::services::service::Stopped;
use super::worker::BODY_STACK;
use crate::plan::report::Blame;
use crate::plan::{Reason, ServiceDecl};
use crate::spec::{Host, LoadedSpec, Transcript};

/// Starts every service once those it depends on are ready and seeded; independent ones at the same time.
///
/// # Errors
/// The first that did not start, was not ready in time, or could not be seeded.
pub(super) fn start(
    spec: &LoadedSpec,
    host: &Arc<TestHost>,
    transcript: &Transcript,
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
                let dyn_host: Arc<dyn Host> = host.clone();
                let local = host
                    .services()
                    .iter()
                    .find(|m| m.service.decl().name == decl.name);
                let up = match local {
                    Some(managed) => host.bring_up(managed),
                    None => host.await_remote(decl),
                }
                .and_then(|()| spec.seed_service(&decl.name, dyn_host, transcript));
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
