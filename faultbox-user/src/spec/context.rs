//! What builtins reach through the evaluator: the world that the spec declares, and the running test if there is one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use faultbox_contract::Protocol;
use starlark::any::ProvidesStaticType;
use starlark::codemap::FileSpan;
use starlark::eval::Evaluator;
use starlark::values::{OwnedFrozenValue, Value};

use super::host::{ArmId, Host};
use super::locate::is_user_file;
use super::problem::{Place, Problem, one_of};
use super::{Ports, Transcript};
use crate::plan::{CertificateDecl, FaultSet, ServiceDecl, SpecPos, TestDecl};
use crate::report::MatrixLayout;
use crate::sys::baton::Baton;
use crate::workload::Shape;

/// The protocols that a spec may name.
pub type Registry = fn() -> Vec<&'static dyn Protocol>;

/// A function of the spec, by its place in [`World`]: values that outlive the load refer to functions by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, allocative::Allocative)]
pub struct FuncId(pub usize);

/// A service with what only the language needs to know of it.
#[derive(Debug, Clone)]
pub struct ServiceEntry {
    /// The plan's part.
    pub decl: Arc<ServiceDecl>,
    /// The call that made it.
    pub site: FileSpan,
    /// `seed=`.
    pub seed: Option<FuncId>,
    /// The dependencies that were given by name, with their place in the list: they may be declared later.
    pub by_name: Vec<(String, usize)>,
}

/// What a test runs.
#[derive(Debug, Clone)]
pub struct Body {
    /// Called before `code`.
    pub setup: Option<FuncId>,
    /// The test function or scenario.
    pub code: FuncId,
    /// In force while `code` runs.
    pub faults: Vec<Arc<FaultSet>>,
    /// Judges what `code` returned; and where the declaring call gives it.
    pub expect: Option<(FuncId, Place)>,
    /// `expect_hang(after=)`.
    pub hang: Option<Duration>,
}

/// A declared test.
#[derive(Debug, Clone)]
pub struct TestEntry {
    /// The plan's part.
    pub decl: TestDecl,
    /// What it runs.
    pub body: Body,
    /// The call that declared it.
    pub site: FileSpan,
}

/// A declared load.
#[derive(Debug, Clone)]
pub struct WorkloadEntry {
    /// Unique among the workloads.
    pub name: String,
    /// What each call does.
    pub code: FuncId,
    /// Who calls, and when.
    pub shape: Shape,
    /// `duration=`.
    pub duration: Option<Duration>,
    /// Service and interface that it is about, if it is about one.
    pub target: Option<(String, String)>,
    /// The call that declared it.
    pub pos: SpecPos,
}

/// All that a spec has declared so far.
#[derive(Default)]
pub struct Declared {
    /// In the order declared.
    pub services: Vec<ServiceEntry>,
    /// In the order declared.
    pub tests: Vec<TestEntry>,
    /// The axes, in the order declared.
    pub matrices: Vec<MatrixLayout>,
    /// Every named assumption's place.
    pub assumptions: BTreeMap<String, FileSpan>,
    /// Every fault that a declaration or a call at load has made.
    pub faults: Vec<Arc<FaultSet>>,
    /// In the order declared.
    pub certificates: Vec<CertificateDecl>,
    /// What `faultbox bench` may put on the services, in the order declared.
    pub workloads: Vec<WorkloadEntry>,
    /// Things the user should know that are no error.
    pub notes: Vec<String>,
    /// The frozen functions, filled as modules freeze.
    pub functions: HashMap<usize, OwnedFrozenValue>,
    /// The functions registered by the module that is being evaluated, innermost last.
    pub pending: Vec<Vec<usize>>,
    next_function: usize,
}

/// The world of one spec.
pub struct World {
    /// The spec's folder, absolute.
    pub folder: PathBuf,
    /// Where addresses come from.
    pub ports: Arc<dyn Ports>,
    /// The protocols.
    pub registry: Registry,
    declared: Mutex<Declared>,
}

impl World {
    /// An empty world.
    pub fn new(folder: PathBuf, ports: Arc<dyn Ports>, registry: Registry) -> World {
        World {
            folder,
            ports,
            registry,
            declared: Mutex::default(),
        }
    }

    /// What has been declared.
    pub fn declared(&self) -> MutexGuard<'_, Declared> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The service called `name`.
    pub fn service(&self, name: &str) -> Option<Arc<ServiceDecl>> {
        self.declared()
            .services
            .iter()
            .find(|s| s.decl.name == name)
            .map(|s| s.decl.clone())
    }

    /// All protocols.
    pub fn protocols(&self) -> impl Iterator<Item = &'static dyn Protocol> {
        (self.registry)().into_iter()
    }

    /// The protocol called `name`, by its canonical name or an alias.
    pub fn protocol(&self, name: &str) -> Option<&'static dyn Protocol> {
        (self.registry)()
            .into_iter()
            .find(|p| p.doc().name == name || p.doc().aliases.contains(&name))
    }

    /// The frozen function behind an id.
    pub fn function(&self, id: FuncId) -> Option<OwnedFrozenValue> {
        self.declared().functions.get(&id.0).cloned()
    }
}

/// A fault that a handle stands for.
#[derive(Debug, Clone)]
pub struct Started {
    /// Where it is armed.
    pub id: ArmId,
    /// What it targets: services and "service.interface".
    pub targets: BTreeSet<String>,
    /// The assumption's name.
    pub name: String,
}

/// A running test.
pub struct RunState<'a> {
    /// What the spec can do.
    pub host: Arc<dyn Host>,
    /// What the test has said.
    pub transcript: &'a Transcript,
    /// Held by the thread that executes Starlark.
    pub baton: Baton,
    /// The faults started and not yet stopped.
    pub started: Mutex<Vec<Started>>,
}

impl RunState<'_> {
    /// Does something that blocks, while other branches of `parallel()` go on.
    pub fn blocking<R>(&self, work: impl FnOnce() -> R) -> R {
        self.baton.without(work)
    }

    /// The faults started and not yet stopped.
    pub fn started(&self) -> MutexGuard<'_, Vec<Started>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What builtins reach through [`Evaluator::extra`].
#[derive(ProvidesStaticType)]
pub struct Context<'a> {
    /// The spec.
    pub world: &'a World,
    /// The running test, unless the spec is being loaded.
    pub run: Option<&'a RunState<'a>>,
}

thread_local! {
    /// The host of the test that this thread runs: attributes such as `.pid` have no evaluator to ask.
    static HOST: RefCell<Option<Arc<dyn Host>>> = const { RefCell::new(None) };
    /// The last attribute that a value of ours did not have, with what it has: Starlark's own message cannot know.
    static MISSING: RefCell<Option<(String, Problem)>> = const { RefCell::new(None) };
}

/// Makes `host` the one that this thread's attributes ask, while `work` runs.
pub fn with_host<R>(host: &Arc<dyn Host>, work: impl FnOnce() -> R) -> R {
    struct Restore(Option<Arc<dyn Host>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            HOST.set(self.0.take());
        }
    }
    let _restore = Restore(HOST.replace(Some(host.clone())));
    work()
}

/// The host of the test that this thread runs.
pub fn current_host() -> Option<Arc<dyn Host>> {
    HOST.with_borrow(Clone::clone)
}

/// Remembers why a value of ours has no attribute `name`.
pub fn missing_attribute(name: &str, problem: Problem) {
    MISSING.set(Some((name.to_owned(), problem)));
}

/// Remembers that `owner` ("a Response") has no attribute `name` but only those `known`.
pub fn no_attribute(owner: &str, name: &str, known: &[&str]) {
    let problem = Problem::call(format!("{owner} has no attribute `{name}`"));
    missing_attribute(name, problem.help(one_of(name, known)));
}

/// Why a value of ours had no attribute `name`, if that was the last one asked for.
pub fn why_missing(name: &str) -> Option<Problem> {
    MISSING
        .with_borrow(Clone::clone)
        .filter(|(n, _)| n == name)
        .map(|(_, p)| p)
}

/// The context of an evaluator. Builtins are only ever called with one.
pub fn context<'a, 'e>(eval: &Evaluator<'_, 'a, 'e>) -> Result<&'a Context<'e>, Problem> {
    eval.extra
        .and_then(|extra| extra.downcast_ref::<Context<'e>>())
        .ok_or_else(|| Problem::call("this builtin was called outside of a spec"))
}

/// Where the call that is being executed stands in the user's own files: the standard library's frames are passed over.
pub fn call_site(eval: &Evaluator) -> Option<FileSpan> {
    let sites: Vec<FileSpan> = (0..eval.call_stack_count())
        .map_while(|n| eval.call_stack_nth_location(n))
        .collect();
    sites
        .iter()
        .find(|s| is_user_file(s.filename()))
        .or(sites.first())
        .cloned()
}

/// The running test; notes where it is.
///
/// # Errors
/// The spec is being loaded.
pub fn running<'a, 'e>(
    eval: &Evaluator<'_, 'a, 'e>,
    what: &str,
) -> Result<&'a RunState<'e>, Problem> {
    let run = context(eval)?.run.ok_or_else(|| {
        Problem::call(format!("`{what}` needs a running test"))
            .help("call it inside a test function or a scenario; at the top level nothing runs yet")
            .label("called while the spec is loaded")
    })?;
    if let Some(site) = call_site(eval) {
        let pos = super::locate::pos_of(&site);
        *run.transcript
            .position
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(pos);
    }
    Ok(run)
}

/// The world, while it is being declared; and where the call stands.
///
/// # Errors
/// A test is running.
pub fn declaring<'a, 'e>(
    eval: &Evaluator<'_, 'a, 'e>,
    what: &str,
) -> Result<(&'e World, FileSpan), Problem> {
    let context = context(eval)?;
    if context.run.is_some() {
        return Err(
            Problem::call(format!("`{what}` cannot be called inside a test"))
                .help("declare it at the top level of the spec"),
        );
    }
    let site = call_site(eval)
        .ok_or_else(|| Problem::call(format!("`{what}` must be called from a spec file")))?;
    Ok((context.world, site))
}

/// Keeps a function for later.
pub fn register<'v>(eval: &Evaluator<'v, '_, '_>, world: &World, function: Value<'v>) -> FuncId {
    let mut declared = world.declared();
    let id = declared.next_function;
    declared.next_function += 1;
    if let Some(pending) = declared.pending.last_mut() {
        pending.push(id);
    }
    drop(declared);
    // No identifier has a space, so no variable of the spec has this name.
    eval.module().set(&function_slot(id), function);
    FuncId(id)
}

/// The module variable that keeps a registered function.
pub fn function_slot(id: usize) -> String {
    format!("function {id}")
}

/// Counts one evaluated assertion.
pub fn count_assertion(run: &RunState) {
    run.transcript.assertions.fetch_add(1, Ordering::Relaxed);
}

/// A site's position.
pub fn site_pos(site: &FileSpan) -> SpecPos {
    super::locate::pos_of(site)
}
