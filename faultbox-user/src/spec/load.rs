//! From a file to a [`LoadedSpec`]: evaluates it and what it loads, then checks what only the whole can show.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use faultbox_contract::Protocol;
use starlark::codemap::{CodeMap, FileSpan, FileSpanRef, Pos, Span};
use starlark::environment::{FrozenModule, Module};
use starlark::eval::{BeforeStmtFunc, BeforeStmtFuncDyn, Evaluator, FileLoader};
use starlark::syntax::{AstModule, Dialect, DialectTypes};

use super::builtins::globals;
use super::builtins::scenario::{DEFAULT_TIMEOUT, nullary};
use super::context::{
    Body, Context, FuncId, Registry, ServiceEntry, TestEntry, World, function_slot,
};
use super::diagnostic::{Diagnostic, SpecError};
use super::files::SpecFiles;
use super::locate::{Spot, diagnostic, explain, pos_of, spot};
use super::needs::Needs;
use super::problem::{Place, Problem, one_of};
use super::required::Definitions;
use super::run::{Printer, prepare};
use super::{LoadedSpec, Ports, Transcript, stdlib};
use crate::plan::topology::env_name;
use crate::plan::{InterfaceDecl, Launch, TestDecl, TestKind, Topology};

/// The protocols of this build.
pub fn fleet() -> Vec<&'static dyn Protocol> {
    faultbox_fleet::all().to_vec()
}

/// The stack on which a spec is evaluated: its limit on nested calls is reached well before its end.
const LOAD_STACK: usize = 64 << 20;

/// How many thousand loop iterations and calls loading may take: seconds, where real specs take a few thousand in all.
const LOAD_STEPS: u64 = 20_000;

fn dialect() -> Dialect {
    Dialect {
        enable_keyword_only_arguments: true,
        enable_positional_only_arguments: true,
        enable_types: DialectTypes::Enable,
        enable_load_reexport: false,
        enable_top_level_stmt: true,
        enable_f_strings: true,
        ..Dialect::Standard
    }
}

/// Loads a spec: as it is now, or as it was planned.
///
/// # Errors
/// Every misuse that can be seen without running anything.
pub fn load(
    path: &Path,
    planned: Option<SpecFiles>,
    ports: Arc<dyn Ports>,
    registry: Registry,
) -> Result<LoadedSpec, SpecError> {
    let nowhere = |message: String| SpecError {
        diagnostics: vec![Diagnostic {
            message,
            help: None,
            file: path.display().to_string(),
            source: Arc::from(""),
            span: 0..0,
            label: String::new(),
        }],
    };
    let files = match planned {
        Some(files) => files,
        None => SpecFiles::read(path).map_err(&nowhere)?,
    };
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("load".into())
            .stack_size(LOAD_STACK)
            .spawn_scoped(scope, || evaluate(path, files, ports, registry, None))
            .map_err(|e| nowhere(format!("no thread could be started: {e}")))?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn evaluate(
    path: &Path,
    mut files: SpecFiles,
    ports: Arc<dyn Ports>,
    registry: Registry,
    trail: Option<&Trail>,
) -> Result<LoadedSpec, SpecError> {
    let name = path.display().to_string();
    let world = World::new(files.folder().to_owned(), ports.clone(), registry);
    let identity = files.identity(path).unwrap_or_else(|_| path.to_owned());
    // It was read before anything else.
    let text = files.text(&identity).unwrap_or_default();
    let file = CodeMap::new(name.clone(), text.clone());
    let transcript = Transcript::default();
    let loader = Loader {
        world: &world,
        transcript: &transcript,
        done: RefCell::default(),
        open: RefCell::default(),
        texts: RefCell::default(),
        files: RefCell::new(files),
        steps: Cell::default(),
        trail,
    };
    let main = Source {
        name,
        identity,
        folder: Some(loader.files.borrow().shown().to_owned()),
    };
    let (module, statements) = loader.module(&main, text).map_err(|error| {
        let endless = loader.steps.get() > LOAD_STEPS;
        if endless && trail.is_none() {
            // Starlark does not tell where it was stopped. Loading depends on nothing but the files, so it ends there again.
            let trail = Trail::default();
            let files = loader.files.take();
            if let Err(placed) = evaluate(path, files, ports, registry, Some(&trail)) {
                return placed;
            }
        }
        let last = trail.and_then(|t| t.0.borrow().clone());
        let diagnostic = match last.filter(|_| endless) {
            Some(last) => Spot::of(&last).diagnostic(&explain(&error).0),
            None => diagnostic(&error, &file.file_span(file.full_span())),
        };
        SpecError {
            diagnostics: vec![diagnostic],
        }
    })?;
    let texts = loader.texts.take();
    let files = loader.files.take();
    let mut problems = vec![];
    check_dependencies(&world, &mut problems);
    check_interfaces(&world, &mut problems);
    discover(&world, &module, &file, &statements, &mut problems);
    if !problems.is_empty() {
        return Err(SpecError {
            diagnostics: problems,
        });
    }

    let mut declared = world.declared();
    let main_name = file.filename();
    declared.tests.sort_by_key(|t| {
        // What a loaded file declares comes before the file that loads it is through.
        if t.decl.pos.file == main_name {
            t.decl.pos.line
        } else {
            0
        }
    });
    let topology = Topology {
        services: declared.services.iter().map(|s| s.decl.clone()).collect(),
        certificates: declared.certificates.clone(),
    };
    let tests: Vec<TestDecl> = declared.tests.iter().map(|t| t.decl.clone()).collect();
    let matrices = declared.matrices.clone();
    let mut notes = std::mem::take(&mut declared.notes);
    drop(declared);
    let printed = transcript
        .prints
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    notes.extend(printed.into_iter().map(|line| format!("print: {line}")));
    if tests.is_empty() && world.declared().workloads.is_empty() {
        notes.push(
            "the spec declares no test: write `def test_x(): ...`, scenario(fn) or fault_matrix(...)"
                .into(),
        );
    }
    let needs = Needs::of(&texts);
    let definitions = Definitions::of(&texts);
    Ok(LoadedSpec {
        world,
        topology,
        tests,
        matrices,
        notes,
        needs,
        definitions,
        files,
    })
}

/// One file.
struct Source {
    /// As the user named it, or below `@faultbox/`.
    name: String,
    /// The same file has the same identity, however it was named.
    identity: PathBuf,
    /// What relative loads are resolved against; `None` for shipped files.
    folder: Option<PathBuf>,
}

/// The statement that evaluation has come to. Noting it takes time, so that is done only to find a place that is not known otherwise.
#[derive(Debug, Default)]
struct Trail(Rc<RefCell<Option<FileSpan>>>);

impl BeforeStmtFuncDyn<'_> for Trail {
    fn call<'v>(
        &mut self,
        span: FileSpanRef,
        _continued: bool,
        _eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<()> {
        *self.0.borrow_mut() = Some(span.to_file_span());
        Ok(())
    }
}

/// Evaluates files, each once.
struct Loader<'w> {
    world: &'w World,
    transcript: &'w Transcript,
    done: RefCell<HashMap<PathBuf, FrozenModule>>,
    open: RefCell<Vec<(PathBuf, String)>>,
    texts: RefCell<Vec<String>>,
    files: RefCell<SpecFiles>,
    /// Thousands of steps taken so far, over all files.
    steps: Cell<u64>,
    trail: Option<&'w Trail>,
}

/// A loader for one file's `load()` statements.
struct From<'l, 'w> {
    loader: &'l Loader<'w>,
    source: &'l Source,
}

impl Loader<'_> {
    /// Evaluates a file; tells where its statements begin.
    fn module(
        &self,
        source: &Source,
        text: String,
    ) -> starlark::Result<(FrozenModule, BTreeSet<usize>)> {
        self.texts.borrow_mut().push(text.clone());
        let ast = AstModule::parse(&source.name, text, &dialect())?;
        let statements = ast
            .stmt_locations()
            .iter()
            .map(|s| s.span.begin().get() as usize)
            .collect();
        self.world.declared().pending.push(vec![]);
        self.open
            .borrow_mut()
            .push((source.identity.clone(), source.name.clone()));
        let context = Context {
            world: self.world,
            run: None,
        };
        let printer = Printer(self.transcript);
        let from = From {
            loader: self,
            source,
        };
        let frozen = Module::with_temp_heap(|module| {
            {
                let mut eval = Evaluator::new(&module);
                prepare(&mut eval, &context, &printer)?;
                eval.set_loader(&from);
                if let Some(trail) = self.trail {
                    let trail = Box::new(Trail(trail.0.clone()));
                    eval.before_stmt_for_dap(BeforeStmtFunc::from_dyn(trail));
                }
                // Starlark asks every thousand steps.
                eval.set_check_cancelled(Box::new(|| {
                    self.steps.update(|n| n + 1);
                    self.steps.get() > LOAD_STEPS
                }));
                eval.eval_module(ast, globals())?;
            }
            module
                .freeze()
                .map_err(|e| starlark::Error::new_other(anyhow::anyhow!("{e:?}")))
        });
        self.open.borrow_mut().pop();
        let mut declared = self.world.declared();
        let registered = declared.pending.pop().unwrap_or_default();
        let frozen = frozen?;
        for id in registered {
            if let Ok(function) = frozen.get(&function_slot(id)) {
                declared.functions.insert(id, function);
            }
        }
        drop(declared);
        self.done
            .borrow_mut()
            .insert(source.identity.clone(), frozen.clone());
        Ok((frozen, statements))
    }
}

impl FileLoader for From<'_, '_> {
    fn load(&self, path: &str) -> starlark::Result<FrozenModule> {
        let fail = |message: String, help: Option<String>| -> starlark::Error {
            Problem {
                help,
                place: Place::Positional(0),
                ..Problem::call(message)
            }
            .into()
        };
        let (source, text) = if let Some(rest) = path.strip_prefix(super::locate::SHIPPED) {
            let known: Vec<&str> = stdlib::FILES.iter().map(|(p, _)| *p).collect();
            let text = stdlib::find(rest).ok_or_else(|| {
                fail(
                    format!("no file `{path}` ships with faultbox"),
                    Some(one_of(rest, &known)),
                )
            })?;
            let source = Source {
                name: path.to_owned(),
                identity: PathBuf::from(path),
                folder: None,
            };
            (source, Some(text.to_owned()))
        } else {
            let Some(folder) = &self.source.folder else {
                return Err(fail(format!("a shipped file cannot load `{path}`"), None));
            };
            let file = folder.join(path.strip_prefix("./").unwrap_or(path));
            let identity = self.loader.files.borrow_mut().identity(&file);
            let identity = identity.map_err(|e| {
                let message = match e.kind() {
                    std::io::ErrorKind::NotFound => format!("there is no file `{}`", file.display()),
                    _ => format!("`{}` cannot be read: {e}", file.display()),
                };
                fail(
                    message,
                    Some("a path is relative to the file that loads it; shipped files begin with `@faultbox/`".into()),
                )
            })?;
            let source = Source {
                name: file.display().to_string(),
                identity,
                folder: file.parent().map(Path::to_owned),
            };
            (source, None)
        };
        if let Some(module) = self.loader.done.borrow().get(&source.identity) {
            return Ok(module.clone());
        }
        let open = self.loader.open.borrow();
        if let Some(start) = open.iter().position(|(i, _)| *i == source.identity) {
            let mut ring: Vec<&str> = open[start..].iter().map(|(_, n)| n.as_str()).collect();
            ring.push(&source.name);
            return Err(fail(
                format!("the files load each other: {}", ring.join(" -> ")),
                Some("move what both need into a third file".into()),
            ));
        }
        drop(open);
        let text = match text {
            Some(text) => text,
            None => {
                let text = self.loader.files.borrow_mut().text(&source.identity);
                text.map_err(|e| fail(e, None))?
            }
        };
        self.loader.module(&source, text).map(|(module, _)| module)
    }
}

/// Names in `depends_on` must exist, and nothing may wait for itself.
fn check_dependencies(world: &World, problems: &mut Vec<Diagnostic>) {
    let declared = world.declared();
    let names: Vec<&str> = declared
        .services
        .iter()
        .map(|s| s.decl.name.as_str())
        .collect();
    for service in &declared.services {
        for (name, i) in &service.by_name {
            if names.contains(&name.as_str()) {
                continue;
            }
            let problem = Problem::call(format!("there is no service `{name}`"))
                .help(one_of(name, &names))
                .label("unknown service");
            problems.push(
                spot(&Place::Item("depends_on".into(), *i), &service.site).diagnostic(&problem),
            );
        }
    }
    if !problems.is_empty() {
        return;
    }
    // Follow the first dependency that leads back to a service already on the way.
    fn walk<'s>(
        name: &'s str,
        of: &HashMap<&'s str, &'s [String]>,
        way: &mut Vec<&'s str>,
        done: &mut BTreeSet<&'s str>,
    ) -> Option<Vec<&'s str>> {
        if let Some(start) = way.iter().position(|n| *n == name) {
            let mut ring = way[start..].to_vec();
            ring.push(name);
            return Some(ring);
        }
        if !done.insert(name) {
            return None;
        }
        way.push(name);
        for next in of.get(name).copied().unwrap_or_default() {
            if let Some(ring) = walk(next, of, way, done) {
                return Some(ring);
            }
        }
        way.pop();
        None
    }
    let of: HashMap<&str, &[String]> = declared
        .services
        .iter()
        .map(|s| (s.decl.name.as_str(), s.decl.depends_on.as_slice()))
        .collect();
    let mut done = BTreeSet::new();
    for service in &declared.services {
        let Some(ring) = walk(&service.decl.name, &of, &mut vec![], &mut done) else {
            continue;
        };
        let problem = Problem::call(format!(
            "services wait for each other: {}",
            ring.join(" -> ")
        ))
        .help("peers that must know each other's addresses simply leave depends_on out")
        .label("part of the cycle");
        let first = declared
            .services
            .iter()
            .find(|s| s.decl.name == ring[0])
            .unwrap_or(service);
        problems.push(spot(&Place::Keyword("depends_on".into()), &first.site).diagnostic(&problem));
        return;
    }
}

/// Two interfaces cannot listen on one address, nor be told to their consumers in one variable.
fn check_interfaces(world: &World, problems: &mut Vec<Diagnostic>) {
    let declared = world.declared();
    let mut seen: Vec<(&ServiceEntry, &InterfaceDecl)> = vec![];
    for service in &declared.services {
        for interface in &service.decl.interfaces {
            let of = |s: &ServiceEntry, i: &InterfaceDecl| format!("{}.{}", s.decl.name, i.name);
            let mut refuse = |message: String, help: &str, other: &ServiceEntry| {
                let problem = Problem::call(message).help(format!(
                    "{help}; the other one is declared at {}",
                    other.decl.pos
                ));
                problems.push(spot(&Place::Call, &service.site).diagnostic(&problem));
            };
            for (other, theirs) in &seen {
                let names = format!("{} and {}", of(other, theirs), of(service, interface));
                let stem = |s: &ServiceEntry, i: &InterfaceDecl| {
                    format!("FAULTBOX_{}_{}", env_name(&s.decl.name), env_name(&i.name))
                };
                let variable = stem(service, interface);
                if stem(other, theirs) == variable {
                    refuse(
                        format!("{names} share the variables {variable}_HOST, _PORT and _ADDR"),
                        "rename one: services find each other by these",
                        other,
                    );
                }
                let local = [*other, service]
                    .iter()
                    .all(|s| s.decl.launch != Launch::Remote);
                let (a, b) = (theirs.addr, interface.addr);
                let hosts = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
                if local && hosts && a.port() == b.port() && a.port() != 0 {
                    refuse(
                        format!("{names} listen on one port, {}", a.port()),
                        "give one of them another port, or port=0 for a free one",
                        other,
                    );
                }
            }
            seen.push((service, interface));
        }
    }
}

/// Finds the top-level `test_*` functions.
fn discover(
    world: &World,
    module: &FrozenModule,
    file: &CodeMap,
    statements: &BTreeSet<usize>,
    problems: &mut Vec<Diagnostic>,
) {
    let found = definitions(file.source(), statements);
    let mut names: Vec<String> = module
        .names()
        .map(|n| n.as_str().to_owned())
        .filter(|n| n.starts_with("test_"))
        .collect();
    let at = |name: &str| found.iter().find(|(n, _)| n == name).map(|(_, p)| *p);
    names.sort_by_key(|n| at(n));
    let span = |pos: usize, len: usize| {
        let number = |n: usize| Pos::new(u32::try_from(n).unwrap_or(u32::MAX));
        FileSpan {
            file: file.clone(),
            span: Span::new(number(pos), number(pos + len)),
        }
    };
    for (i, (name, pos)) in found.iter().enumerate() {
        if let Some((_, first)) = found[..i].iter().find(|(n, _)| n == name) {
            let problem = Problem::call(format!("there are two tests called `{name}`"))
                .help(format!(
                    "the first one is declared at {}",
                    pos_of(&span(*first, name.len()))
                ))
                .label("names are unique");
            problems.push(Spot::of(&span(*pos, name.len())).diagnostic(&problem));
        }
    }
    for name in names {
        let Ok(function) = module.get(&name) else {
            continue;
        };
        let value = function.value();
        let site = span(at(&name).unwrap_or_default(), name.len());
        if value.get_type() != "function" {
            continue;
        }
        if let Err(mut problem) = nullary(&name, value) {
            problem.message = format!("test `{name}` must be callable without arguments");
            problems.push(Spot::of(&site).diagnostic(&problem));
            continue;
        }
        let mut declared = world.declared();
        if let Some(other) = declared.tests.iter().find(|t| t.decl.name == name) {
            // scenario(test_x) and def test_x are one function under one name: running it twice proves nothing more.
            let same = declared
                .functions
                .get(&other.body.code.0)
                .is_some_and(|f| f.value().ptr_eq(value));
            if !(same && other.decl.kind == TestKind::Scenario) {
                let problem = Problem::call(format!("there are two tests called `{name}`"))
                    .help(format!("the other one is declared at {}", other.decl.pos))
                    .label("names are unique");
                problems.push(Spot::of(&site).diagnostic(&problem));
            }
            continue;
        }
        // Ids of registered functions grow from 0, so one past them all is free.
        let id = declared.functions.keys().max().map_or(0, |n| n + 1);
        declared.functions.insert(id, function.clone());
        declared.tests.push(TestEntry {
            decl: TestDecl {
                name,
                kind: TestKind::Function,
                timeout: DEFAULT_TIMEOUT,
                baseline: None,
                require_faults_fire: false,
                pos: pos_of(&site),
            },
            body: Body {
                setup: None,
                code: FuncId(id),
                faults: vec![],
                expect: None,
                hang: None,
            },
            site,
        });
    }
}

/// The names that begin with `test_` and are defined or assigned at the top level, with where.
fn definitions(source: &str, statements: &BTreeSet<usize>) -> Vec<(String, usize)> {
    let mut found = vec![];
    let mut offset = 0;
    for line in source.split_inclusive('\n') {
        let begin = offset;
        offset += line.len();
        // A line of a docstring may look like a definition, but no statement begins there.
        if !statements.contains(&begin) {
            continue;
        }
        let (name, is_def) = match line.strip_prefix("def ") {
            Some(rest) => (rest.trim_start(), true),
            None => (line, false),
        };
        if !name.starts_with("test_") {
            continue;
        }
        let end = name
            .find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(name.len());
        let rest = name[end..].trim_start();
        if is_def || (rest.starts_with('=') && !rest.starts_with("==")) {
            let pos = begin + (line.len() - name.len());
            found.push((name[..end].to_owned(), pos));
        }
    }
    found
}
