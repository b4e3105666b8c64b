//! `service(...)`, `op(...)`, `observe.*`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;
use starlark::values::tuple::UnpackTuple;

use super::interface::{address, no_address};
use crate::plan::{Health, IoUring, Launch, OpDecl, ServiceDecl};
use crate::spec::builtins::scenario::nullary;
use crate::spec::context::{ServiceEntry, World, declaring, site_pos};
use crate::spec::convert::{int_of, kind_of};
use crate::spec::params::{
    boolean, callable, dict, given, list, name as read_name, span, text, texts,
};
use crate::spec::problem::{Place, Problem, one_of};
use crate::spec::syscalls;
use crate::spec::values::health::HealthValue;
use crate::spec::values::interface::InterfaceValue;
use crate::spec::values::observe::Stream;
use crate::spec::values::op::OpValue;
use crate::spec::values::service::ServiceValue;
use crate::sys::path::is_program;
use faultbox_contract::{Dialect, Glob};

/// Where a program is: a path resolves against the spec's folder, a bare name through PATH.
fn find_program(folder: &Path, written: &str) -> Option<PathBuf> {
    if written.contains('/') {
        // Only `.` goes: symbolic links stay as written, because programs look at the path they were started by. A Python of a virtual
        // environment finds its packages beside its link, and busybox its applet by its name.
        let path: PathBuf = folder.join(written).components().collect();
        // Not checked for being executable: the run says so, by name, when it starts it.
        return path.exists().then_some(path);
    }
    std::env::split_paths(&std::env::var_os("PATH")?)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(written))
        .find(|path| is_program(path))
}

/// The arguments by position, each with its place.
pub(super) fn positional<'v>(args: &UnpackTuple<Value<'v>>) -> Vec<(Place, Value<'v>)> {
    let places = (0..).map(Place::Positional);
    places.zip(args.items.iter().copied()).collect()
}

/// The decimal text of a number, or the string itself.
fn plain_text(value: Value) -> Option<String> {
    match value.get_type() {
        "string" => value.unpack_str().map(str::to_owned),
        "int" | "float" => Some(value.to_str()),
        _ => None,
    }
}

fn read_env(value: Value) -> Result<BTreeMap<String, String>, Problem> {
    let mut env = BTreeMap::new();
    for (i, (key, value)) in dict("env", value)?.into_iter().enumerate() {
        let at = || Place::Entry("env".into(), i);
        let named = || Place::Item("env".into(), i);
        let Some(key) = key.unpack_str() else {
            return Err(Problem::new(
                named(),
                format!("`env`: a variable's name is a string, not {}", kind_of(key)),
            ));
        };
        if key.is_empty() || key.contains(['=', '\0']) {
            return Err(Problem::new(
                named(),
                format!("`env`: {key:?} cannot name a variable"),
            ));
        }
        let Some(value) = plain_text(value) else {
            return Err(Problem::new(
                at(),
                format!(
                    "`env`: the value of `{key}` is a string or a number, not {}",
                    kind_of(value)
                ),
            )
            .help(match value.get_type() {
                "bool" => "write \"true\" or \"1\": programs differ in what they take for true",
                "interface" => "write `svc.iface.addr` or `.port`",
                _ => "convert it with str(...)",
            }));
        };
        if value.contains('\0') {
            return Err(Problem::new(
                at(),
                format!("`env`: the value of `{key}` has a NUL byte"),
            ));
        }
        env.insert(key.to_owned(), value);
    }
    Ok(env)
}

fn read_args(value: Value) -> Result<Vec<String>, Problem> {
    list("args", value)?
        .into_iter()
        .enumerate()
        .map(|(i, v)| {
            plain_text(v).filter(|t| !t.contains('\0')).ok_or_else(|| {
                Problem::new(
                    Place::Item("args".into(), i),
                    format!("`args`: expected strings or numbers, got {}", kind_of(v)),
                )
            })
        })
        .collect()
}

fn read_signal(value: Value) -> Result<i32, Problem> {
    let wrong = || {
        Problem::param(
            "stop_signal",
            format!("`stop_signal`: {value} is no signal"),
        )
        .help("write \"SIGTERM\", \"SIGINT\" or \"SIGQUIT\"")
    };
    if let Some(number) = int_of(value) {
        return i32::try_from(number)
            .ok()
            .filter(|n| (1..=64).contains(n))
            .ok_or_else(wrong);
    }
    let name = value.unpack_str().ok_or_else(wrong)?.to_uppercase();
    let full = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    nix::sys::signal::Signal::from_str(&full)
        .map(|s| s as i32)
        .map_err(|_| wrong())
}

/// What `fault()` and `fault_assumption()` take besides system calls.
const TAKEN: [&str; 8] = [
    "name",
    "target",
    "rules",
    "faults",
    "monitors",
    "description",
    "run",
    "targets",
];

fn read_ops(value: Value) -> Result<BTreeMap<String, OpDecl>, Problem> {
    let mut ops = BTreeMap::new();
    for (i, (key, value)) in dict("ops", value)?.into_iter().enumerate() {
        let at = || Place::Item("ops".into(), i);
        let name = key.unpack_str().unwrap_or_default();
        let identifier = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !identifier {
            return Err(
                Problem::new(at(), format!("`ops`: {key} cannot be a keyword"))
                    .help("an op is used as `wal=deny(...)`, so its name is an identifier"),
            );
        }
        if !syscalls::named(name).is_empty() || TAKEN.contains(&name) {
            return Err(
                Problem::new(at(), format!("`ops`: `{name}=` has a meaning already"))
                    .help("call it by what it is for, such as \"wal\" or \"snapshot\""),
            );
        }
        let Some(op) = OpValue::from_value(value) else {
            return Err(Problem::new(
                at(),
                format!("`ops`: expected op([...]), got {}", kind_of(value)),
            ));
        };
        ops.insert(name.to_owned(), op.0.clone());
    }
    Ok(ops)
}

fn read_observe(value: Value) -> Result<Vec<String>, Problem> {
    let mut streams: Vec<String> = vec![];
    for (i, value) in list("observe", value)?.into_iter().enumerate() {
        let stream = match Stream::from_value(value) {
            Some(stream) => stream.0,
            None => match value.unpack_str() {
                Some("stdout") => "stdout",
                Some("stderr") => "stderr",
                _ => {
                    return Err(Problem::new(
                        Place::Item("observe".into(), i),
                        format!("`observe`: {value} is no stream"),
                    )
                    .help("write \"stdout\", \"stderr\", observe.stdout() or observe.stderr()"));
                }
            },
        };
        if !streams.iter().any(|s| s == stream) {
            streams.push(stream.to_owned());
        }
    }
    Ok(streams)
}

/// "db.example:5432" as its two parts; an IPv6 address has no port here.
fn host_and_port(text: &str) -> (&str, Option<u16>) {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (text, None),
        },
        _ => (text, None),
    }
}

/// Gives bare interfaces to a service: each gets its proxy's address.
pub(super) fn attach(
    world: &World,
    service: &str,
    bare: &[(Place, Value)],
    remote: Option<Value>,
) -> Result<Vec<InterfaceValue>, Problem> {
    let elsewhere = remote.and_then(Value::unpack_str).map(host_and_port);
    let mut interfaces: Vec<InterfaceValue> = vec![];
    for (place, value) in bare {
        let Some(interface) = InterfaceValue::from_value(*value) else {
            return Err(Problem::new(
                place.clone(),
                format!("expected interface(...), got {}", kind_of(*value)),
            )
            .help("service(name, binary, interface(...), ...)"));
        };
        let name = &interface.decl.name;
        if matches!(name.as_str(), "name" | "pid") {
            return Err(Problem::new(
                place.clone(),
                format!("an interface cannot be called `{name}`: every service has that attribute"),
            ));
        }
        if interfaces.iter().any(|i| i.decl.name == *name) {
            return Err(Problem::new(
                place.clone(),
                format!("service {service} has two interfaces called `{name}`"),
            )
            .help("interface names are unique within a service"));
        }
        let mut interface = interface.clone();
        interface.service = Some(service.to_owned());
        if remote.is_some() && interface.free_port {
            return Err(Problem::new(
                place.clone(),
                format!("the port of {service}.{name} is not known: the service runs elsewhere"),
            )
            .help("give the interface the port that it listens on"));
        }
        if let Some((host, port)) = elsewhere.filter(|_| !interface.host_given) {
            let own = interface.decl.addr.port();
            if port.is_some_and(|p| p != own) {
                return Err(Problem::param(
                    "remote",
                    format!("`remote`: its port is not that of {service}.{name}, which is {own}"),
                )
                .help(format!(
                    "write remote={host:?}: the interfaces say the ports"
                )));
            }
            interface.decl.addr = address(host, interface.decl.addr.port())
                .ok_or_else(|| no_address("remote", host))?;
            interface.decl.host = host.to_owned();
        }
        if interface.proxied {
            let addr = world
                .ports
                .proxy(service, name, interface.transport)
                .map_err(|e| {
                    Problem::new(
                        place.clone(),
                        format!("no address for the proxy of {service}.{name}: {e}"),
                    )
                })?;
            interface.decl.proxy_addr = Some(addr);
        }
        interfaces.push(interface);
    }
    Ok(interfaces)
}

/// The services' names, and those of them that were given by name, with their places in the list.
type Dependencies = (Vec<String>, Vec<(String, usize)>);

/// `depends_on=`.
pub(super) fn read_depends_on(value: Option<Value>) -> Result<Dependencies, Problem> {
    let (mut after, mut by_name) = (vec![], vec![]);
    let Some(value) = value else {
        return Ok((after, by_name));
    };
    for (i, value) in list("depends_on", value)?.into_iter().enumerate() {
        let dependency = match (ServiceValue::from_value(value), value.unpack_str()) {
            (Some(service), _) => service.decl.name.clone(),
            (None, Some(text)) => {
                by_name.push((text.to_owned(), i));
                text.to_owned()
            }
            (None, None) => {
                return Err(Problem::new(
                    Place::Item("depends_on".into(), i),
                    format!("`depends_on`: expected services, got {}", kind_of(value)),
                ));
            }
        };
        if !after.contains(&dependency) {
            after.push(dependency);
        }
    }
    Ok((after, by_name))
}

/// The name of a new service: by keyword, or the first positional, which is then taken away.
pub(super) fn read_service_name<'v>(
    world: &World,
    builtin: &str,
    name: Option<Value<'v>>,
    positional: &mut Vec<(Place, Value<'v>)>,
) -> Result<String, Problem> {
    let (place, name) = match given(name) {
        Some(value) => (Place::Param("name".into()), read_name("name", value)?),
        None if positional.is_empty() => {
            return Err(Problem::call(format!("`{builtin}` needs a name"))
                .help(format!("write {builtin}(\"db\", ...)")));
        }
        None => {
            let (place, value) = positional.remove(0);
            let read = read_name("name", value).map_err(|p| Problem {
                place: place.clone(),
                ..p
            })?;
            (place, read)
        }
    };
    let declared = world.declared();
    match declared.services.iter().find(|s| s.decl.name == name) {
        None => Ok(name),
        Some(first) => Err(
            Problem::new(place, format!("there are two services called `{name}`"))
                .help(format!(
                    "the first one is declared at {}",
                    site_pos(&first.site)
                ))
                .label("names are unique"),
        ),
    }
}

fn not_yet(keyword: &str, value: Option<Value>) -> Result<(), Problem> {
    if given(value).is_none() {
        return Ok(());
    }
    Err(
        Problem::keyword(keyword, format!("`{keyword}=` is not yet supported"))
            .help("run the program with binary=, or name a running one with remote="),
    )
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// Declares a service: `db = service("db", "/usr/bin/postgres", interface("pg", "postgres", 5432), args=[...])`.
    ///
    /// The second positional may be the binary, the others are interfaces. Exactly one of `binary`, `remote`, `image`, `build`.
    /// A relative binary resolves against the spec's folder, a bare name through PATH. Attributes: `.name`, `.pid`, one per
    /// interface, and the steps of its only (or its `default`) interface.
    ///
    /// Keywords: `args`, `env` (numbers become decimal text), `cwd` (the spec's folder), `depends_on` (services or their names),
    /// `healthcheck` (`tcp http ready cmd`), `ops` (`{"wal": op([...], path=)}`), `observe` (["stdout", "stderr"]), `seed` (a function
    /// called when it has become ready), `stop_signal` ("SIGTERM"), `stop_timeout` ("2s"), `user`, `remote` (a host: it runs there
    /// already, and so do its interfaces that do not say `host=`), `io_uring` ("auto":
    /// refused from the first syscall fault on; "deny": refused from the start; "allow": never refused, and unseen by syscall faults).
    fn service<'v>(
        #[starlark(args)] args_given: UnpackTuple<Value<'v>>,
        #[starlark(require = named)] name: Option<Value<'v>>,
        #[starlark(require = named)] binary: Option<Value<'v>>,
        #[starlark(require = named)] args: Option<Value<'v>>,
        #[starlark(require = named)] env: Option<Value<'v>>,
        #[starlark(require = named)] cwd: Option<Value<'v>>,
        #[starlark(require = named)] depends_on: Option<Value<'v>>,
        #[starlark(require = named)] healthcheck: Option<Value<'v>>,
        #[starlark(require = named)] ops: Option<Value<'v>>,
        #[starlark(require = named)] observe: Option<Value<'v>>,
        #[starlark(require = named)] reuse: Option<Value<'v>>,
        #[starlark(require = named)] seed: Option<Value<'v>>,
        #[starlark(require = named)] reset: Option<Value<'v>>,
        #[starlark(require = named)] stop_signal: Option<Value<'v>>,
        #[starlark(require = named)] stop_timeout: Option<Value<'v>>,
        #[starlark(require = named)] user: Option<Value<'v>>,
        #[starlark(require = named)] remote: Option<Value<'v>>,
        #[starlark(require = named)] image: Option<Value<'v>>,
        #[starlark(require = named)] build: Option<Value<'v>>,
        #[starlark(require = named)] volumes: Option<Value<'v>>,
        #[starlark(require = named)] ports: Option<Value<'v>>,
        #[starlark(require = named)] io_uring: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<ServiceValue> {
        let (world, site) = declaring(eval, "service")?;
        let mut positional = positional(&args_given);
        let name = read_service_name(world, "service", name, &mut positional)?;

        let mut launch_text = match given(binary) {
            Some(value) => Some(text("binary", value)?),
            None => None,
        };
        if let Some((place, value)) = positional.first().cloned()
            && let Some(path) = value.unpack_str()
        {
            if launch_text.is_some() {
                return Err(Problem::new(place, "the binary is given twice").into());
            }
            launch_text = Some(path.to_owned());
            positional.remove(0);
        }
        not_yet("image", image)?;
        not_yet("build", build)?;
        for (keyword, value) in [("volumes", volumes), ("ports", ports)] {
            if given(value).is_some_and(|v| v.length().map_or(true, |n| n > 0)) {
                return Err(Problem::keyword(
                    keyword,
                    format!("`{keyword}=` belongs to images, and this service runs a binary"),
                )
                .help("a binary sees the machine's own files and ports")
                .into());
            }
        }
        let remote = given(remote).filter(|v| v.unpack_bool() != Some(false));
        if let Some(value) = remote
            && value.unpack_bool().is_none()
            && value.unpack_str().is_none_or(str::is_empty)
        {
            return Err(Problem::param(
                "remote",
                match value.unpack_str() {
                    Some(_) => "`remote`: the host is empty".to_owned(),
                    None => format!("`remote`: expected a host or True, got {}", kind_of(value)),
                },
            )
            .help("write remote=\"db.example\", or say with each interface where it is: interface(\"pg\", \"postgres\", 5432, host=\"db.example\")")
            .into());
        }
        let interfaces = attach(world, &name, &positional, remote)?;
        let launch = match (launch_text, remote) {
            (Some(_), Some(_)) => {
                return Err(Problem::keyword(
                    "remote",
                    format!("service {name} has both a binary and remote="),
                )
                .help("exactly one of binary, remote, image, build")
                .into());
            }
            (Some(written), None) if written.is_empty() => {
                return Err(Problem::call(format!("the binary of service {name} is empty")).into());
            }
            (Some(written), None) => Launch::Binary {
                resolved: find_program(&world.folder, &written),
                written,
            },
            (None, Some(_)) => Launch::Remote,
            (None, None) => {
                return Err(Problem::call(format!("service {name} has nothing to run"))
                    .help("exactly one of binary, remote, image, build")
                    .into());
            }
        };
        if launch == Launch::Remote {
            let pointless = [
                ("args", args),
                ("cwd", cwd),
                ("user", user),
                ("observe", observe),
                ("ops", ops),
                ("stop_signal", stop_signal),
                ("stop_timeout", stop_timeout),
            ];
            if let Some((keyword, _)) = pointless.iter().find(|(_, v)| given(*v).is_some()) {
                return Err(Problem::keyword(
                    keyword,
                    format!("`{keyword}=` has no meaning for a remote service"),
                )
                .help("faultbox does not start it, and cannot see its processes")
                .into());
            }
            if interfaces.is_empty() {
                return Err(
                    Problem::call(format!("remote service {name} has no interface"))
                        .help("its interfaces say where it is reached")
                        .into(),
                );
            }
        }

        let (after, by_name) = read_depends_on(given(depends_on))?;
        let mut health = match given(healthcheck) {
            None => None,
            Some(value) => Some(
                HealthValue::from_value(value)
                    .ok_or_else(|| {
                        Problem::param(
                            "healthcheck",
                            format!(
                                "`healthcheck`: expected tcp(...), http(...), ready() or cmd([...]), got {}",
                                kind_of(value)
                            ),
                        )
                    })?
                    .0
                    .clone(),
            ),
        };
        if let Some(Health::Cmd { argv, .. }) = &mut health
            && let Some(program) = find_program(&world.folder, &argv[0])
        {
            argv[0] = program.display().to_string();
        }
        if let Some(Health::Ready { interface, .. }) = &health {
            let names: Vec<&str> = interfaces.iter().map(|i| i.decl.name.as_str()).collect();
            let clear = match interface {
                Some(wanted) => names.contains(&wanted.as_str()),
                None => names.len() == 1 || names.contains(&"default"),
            };
            if !clear {
                let message = match interface {
                    Some(wanted) => format!("service {name} has no interface `{wanted}`"),
                    None => format!("which interface of {name} `ready()` asks is not clear"),
                };
                let help = if names.is_empty() {
                    "give the service an interface, or use tcp(), http() or cmd()".to_owned()
                } else {
                    format!(
                        "write ready(interface=\"{}\"): {}",
                        names[0],
                        one_of("", &names)
                    )
                };
                return Err(Problem::param("healthcheck", message).help(help).into());
            }
        }
        let reused = given(reuse).map_or(Ok(false), |v| boolean("reuse", v))?;
        if reused {
            world.declared().notes.push(format!(
                "{}: reuse=True has no effect: every test has fresh services",
                site_pos(&site)
            ));
        }
        if let Some(value) = given(reset) {
            callable("reset", value)?;
            world.declared().notes.push(format!(
                "{}: reset= has no effect: every test has fresh services",
                site_pos(&site)
            ));
        }
        let cwd = match given(cwd) {
            Some(value) => world.folder.join(text("cwd", value)?),
            None => world.folder.clone(),
        };
        let io_uring = match given(io_uring).map(|v| text("io_uring", v)).transpose()? {
            None => IoUring::Auto,
            Some(word) => {
                match word.as_str() {
                    "auto" => IoUring::Auto,
                    "deny" => IoUring::Deny,
                    "allow" => IoUring::Allow,
                    other => {
                        return Err(Problem::param(
                        "io_uring",
                        format!("`io_uring`: expected \"auto\" | \"deny\" | \"allow\", got \"{other}\""),
                    )
                    .into());
                    }
                }
            }
        };
        let user = match given(user) {
            None => None,
            Some(value) => Some(match int_of(value) {
                Some(uid) if uid >= 0 => uid.to_string(),
                _ => text("user", value)?,
            }),
        };
        let decl = Arc::new(ServiceDecl {
            name,
            launch,
            interfaces: interfaces.iter().map(|i| i.decl.clone()).collect(),
            args: given(args).map_or(Ok(vec![]), read_args)?,
            env: given(env).map_or(Ok(BTreeMap::new()), read_env)?,
            cwd,
            depends_on: after,
            health,
            ops: given(ops).map_or(Ok(BTreeMap::new()), read_ops)?,
            observe: given(observe).map_or(Ok(vec![]), read_observe)?,
            stop_signal: given(stop_signal).map_or(Ok(nix::libc::SIGTERM), read_signal)?,
            stop_timeout: given(stop_timeout)
                .map_or(Ok(Duration::from_secs(2)), |v| span("stop_timeout", v))?,
            user,
            io_uring,
            pos: site_pos(&site),
        });
        let seed = match given(seed) {
            Some(value) => {
                let function = nullary("seed", value)?;
                Some(crate::spec::context::register(eval, world, function))
            }
            None => None,
        };
        world.declared().services.push(ServiceEntry {
            decl: decl.clone(),
            site,
            seed,
            by_name,
        });
        Ok(ServiceValue { decl, interfaces })
    }

    /// Names an operation of a service: `ops={"wal": op(["write", "fsync"], path="**/pg_wal/**")}`, then `wal=deny("EIO")`.
    fn op<'v>(
        syscalls: Value<'v>,
        #[starlark(require = named)] path: Option<Value<'v>>,
    ) -> starlark::Result<OpValue> {
        let names = texts("syscalls", syscalls)?;
        if names.is_empty() {
            return Err(Problem::param("syscalls", "`syscalls` is empty").into());
        }
        syscalls::check_op_names(&names)?;
        let path = given(path).map(|v| text("path", v)).transpose()?;
        if let Some(pattern) = &path {
            Glob::new(pattern, Dialect::Path)
                .map_err(|e| Problem::param("path", format!("`path`: {e}")))?;
        }
        Ok(OpValue(OpDecl {
            syscalls: names,
            path,
        }))
    }
}

/// `observe.stdout()`, `observe.stderr()`.
#[starlark_module]
pub fn observe(builder: &mut GlobalsBuilder) {
    /// Each line that the service writes to standard output becomes an event of type "stdout".
    fn stdout() -> starlark::Result<Stream> {
        Ok(Stream("stdout"))
    }

    /// Each line that the service writes to standard error becomes an event of type "stderr".
    fn stderr() -> starlark::Result<Stream> {
        Ok(Stream("stderr"))
    }
}

/// Adds `service` and `op`.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_keeps_the_path_it_is_named_by() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        std::os::unix::fs::symlink("/bin/sh", dir.path().join("bin/python3")).unwrap();
        let found = |written: &str| find_program(dir.path(), written);
        assert_eq!(found("./bin/python3"), Some(dir.path().join("bin/python3")));
        let absolute = dir.path().join("bin/python3");
        assert_eq!(found(absolute.to_str().unwrap()), Some(absolute));
        assert_eq!(
            found("bin/../bin/python3"),
            Some(dir.path().join("bin/../bin/python3"))
        );
        assert_eq!(found("./bin/node"), None);
    }
}
