//! Which system calls a keyword stands for, and what a syscall action means.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use faultbox_contract::doc::{COMMON_PARAMS, ParamDoc};
use faultbox_contract::rule::nearest;
use faultbox_contract::{Arg, Dialect, Glob, Kind, duration};
use starlark::values::Value;

use super::problem::{Place, Problem};
use super::values::action::{Action, ActionArg, Level};
use super::values::interface::InterfaceValue;
use super::values::service::ServiceValue;
use crate::plan::{Dest, Existing, FdClass, OpDecl, ServiceDecl, SyscallAction, SyscallRule};
use crate::sys::{names, shape};

/// A family's name and its members by their kernel names; members that this architecture does not have are left out when it is used.
pub const FAMILIES: &[(&str, &[&str])] = &[
    (
        "read",
        &[
            "read", "readv", "pread64", "preadv", "preadv2", "recvfrom", "recvmsg", "recvmmsg",
        ],
    ),
    (
        "write",
        &[
            "write", "writev", "pwrite64", "pwritev", "pwritev2", "sendto", "sendmsg", "sendmmsg",
            "sendfile",
        ],
    ),
    ("send", &["sendto", "sendmsg", "sendmmsg", "sendfile"]),
    ("recv", &["recvfrom", "recvmsg", "recvmmsg"]),
    ("open", &["open", "openat", "openat2", "creat"]),
    (
        "fsync",
        &[
            "fsync",
            "fdatasync",
            "sync_file_range",
            "msync",
            "syncfs",
            "sync",
        ],
    ),
    ("connect", &["connect"]),
    ("accept", &["accept", "accept4"]),
    ("bind", &["bind"]),
    ("listen", &["listen"]),
    ("socket", &["socket"]),
    ("rename", &["rename", "renameat", "renameat2"]),
    ("unlink", &["unlink", "unlinkat"]),
    ("mkdir", &["mkdir", "mkdirat"]),
    ("stat", &["stat", "lstat", "fstat", "newfstatat", "statx"]),
    ("truncate", &["truncate", "ftruncate", "fallocate"]),
    ("exec", &["execve", "execveat"]),
    ("fork", &["fork", "vfork", "clone", "clone3"]),
    ("close", &["close", "close_range"]),
];

/// The keywords that every syscall action takes besides those that every rule takes.
const OWN_PARAMS: &[ParamDoc] = &[
    ParamDoc::opt(
        "path",
        Kind::Glob(Dialect::Path),
        "only calls on a path that matches, resolved and absolute",
    ),
    ParamDoc::opt(
        "on",
        Kind::Choice(&["file", "socket", "pipe", "tty"]),
        "only calls on such a descriptor",
    ),
    ParamDoc::opt(
        "dest",
        Kind::Text,
        "only calls to this peer: a service, an interface, \"host:port\" or a CIDR block",
    ),
    ParamDoc::opt("exact", Kind::Bool, "this syscall only, not its family"),
    ParamDoc::opt(
        "existing",
        Kind::Choice(&["keep", "reset"]),
        "what connect=deny does to the connections that exist",
    ),
];

/// The keywords of a syscall action.
pub fn params_of(action: &str) -> Vec<ParamDoc> {
    let mut params: Vec<ParamDoc> = COMMON_PARAMS
        .iter()
        .filter(|p| p.name != "source")
        .chain(OWN_PARAMS)
        .map(|p| ParamDoc { ..*p })
        .collect();
    match action {
        "deny" => params.insert(0, ParamDoc::req("errno", Kind::Text, "the errno's name")),
        "delay" => {
            params.insert(
                0,
                ParamDoc::opt("jitter", Kind::Duration, "the largest deviation either way"),
            );
            params.insert(
                0,
                ParamDoc::req("duration", Kind::Duration, "how long the call is held"),
            );
        }
        _ => {}
    }
    params
}

/// The kernel's own spelling of a syscall that this architecture has.
fn known(name: &str) -> Option<&'static str> {
    names::syscalls().find(|(n, _)| *n == name).map(|(n, _)| n)
}

fn family(name: &str) -> Option<Vec<&'static str>> {
    FAMILIES
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, members)| members.iter().filter_map(|m| known(m)).collect())
}

/// What a family's or a syscall's name stands for.
///
/// # Errors
/// The kernel has no such syscall; with the nearest name.
fn expand_plain(name: &str, exact: bool) -> Result<Vec<&'static str>, (String, String)> {
    if !exact && let Some(members) = family(name) {
        return Ok(members);
    }
    if let Some(call) = known(name) {
        return Ok(vec![call]);
    }
    if names::syscall_known_elsewhere(name) {
        return Err((
            format!("this machine's architecture has no syscall `{name}`"),
            "without exact=True, a family covers what each architecture has".into(),
        ));
    }
    if exact && family(name).is_some() {
        return Err((
            format!("`{name}` is a family, not a syscall, so exact=True cannot keep it alone"),
            "name one of its members".into(),
        ));
    }
    Err((format!("the kernel has no syscall `{name}`"), String::new()))
}

/// The syscalls that a keyword of `fault()` stands for on `service`, and the path that its op adds.
///
/// # Errors
/// It is none of the service's ops, no family and no syscall.
fn expand(
    service: &ServiceDecl,
    key: &str,
    exact: bool,
) -> Result<(Vec<&'static str>, Option<String>), Problem> {
    if let Some(op) = service.ops.get(key) {
        return Ok((expand_op(op), op.path.clone()));
    }
    expand_plain(key, exact)
        .map(|calls| (calls, None))
        .map_err(|(message, help)| {
            let ops = service.ops.keys().map(String::as_str);
            let all: Vec<&str> = FAMILIES
                .iter()
                .map(|(n, _)| *n)
                .chain(ops.clone())
                .chain([
                    "target",
                    "rules",
                    "faults",
                    "run",
                    "description",
                    "monitors",
                ])
                .chain(names::syscalls().map(|(n, _)| n))
                .collect();
            let problem = Problem::keyword(key, message).label("no family, syscall or op");
            if !help.is_empty() {
                return problem.help(help);
            }
            let mut list: Vec<&str> = FAMILIES.iter().map(|(n, _)| *n).collect();
            list.extend(ops);
            let list = list.join(", ");
            match nearest(key, &all) {
                Some(best) => problem.help(format!(
                    "did you mean `{best}`? A keyword is a family ({list}) or any syscall's name"
                )),
                None => problem.help(format!(
                    "a keyword is a family ({list}) or any syscall's name"
                )),
            }
        })
}

/// The syscalls of an op, unique.
pub fn expand_op(op: &OpDecl) -> Vec<&'static str> {
    let mut calls = vec![];
    for name in &op.syscalls {
        // Checked when the op was made.
        for call in expand_plain(name, false).unwrap_or_default() {
            if !calls.contains(&call) {
                calls.push(call);
            }
        }
    }
    calls
}

/// What a family's or a syscall's name stands for; nothing if it is neither.
pub fn named(name: &str) -> Vec<&'static str> {
    expand_plain(name, false).unwrap_or_default()
}

/// Checks the names that `op(syscalls=[...])` lists.
///
/// # Errors
/// The first that is no family and no syscall.
pub fn check_op_names(names_given: &[String]) -> Result<(), Problem> {
    for (i, name) in names_given.iter().enumerate() {
        if let Err((message, help)) = expand_plain(name, false) {
            let all: Vec<&str> = FAMILIES
                .iter()
                .map(|(n, _)| *n)
                .chain(names::syscalls().map(|(n, _)| n))
                .collect();
            let help = match nearest(name, &all) {
                Some(best) if help.is_empty() => format!("did you mean \"{best}\"?"),
                _ if help.is_empty() => {
                    "name families (\"write\") or syscalls (\"pwrite64\")".into()
                }
                _ => help,
            };
            return Err(Problem::new(Place::Item("syscalls".into(), i), message).help(help));
        }
    }
    Ok(())
}

/// What a value selects as `dest=`.
///
/// # Errors
/// It is no service, interface, "host:port" or CIDR block.
pub fn dest_of(value: Value) -> Result<Option<Dest>, Problem> {
    if let Some(service) = ServiceValue::from_value(value) {
        if service.interfaces.is_empty() {
            return Err(Problem::param(
                "dest",
                format!(
                    "service {} has no interface, so nothing is sent to it",
                    service.decl.name
                ),
            ));
        }
        return Ok(Some(Dest::Addrs(
            service.interfaces.iter().flat_map(addresses).collect(),
        )));
    }
    if let Some(interface) = InterfaceValue::from_value(value) {
        return Ok(Some(Dest::Addrs(addresses(interface))));
    }
    let Some(text) = value.unpack_str() else {
        return Ok(None);
    };
    if let Some((net, prefix)) = text.split_once('/') {
        let parsed = net.parse::<IpAddr>().ok().zip(prefix.parse::<u8>().ok());
        return match parsed {
            Some((net, prefix)) if prefix <= if net.is_ipv4() { 32 } else { 128 } => {
                Ok(Some(Dest::Cidr { net, prefix }))
            }
            _ => Err(
                Problem::param("dest", format!("`{text}` is not a CIDR block"))
                    .help("write \"10.0.0.0/8\""),
            ),
        };
    }
    match resolve(text) {
        Ok(addrs) => Ok(Some(Dest::Addrs(addrs))),
        Err(e) => Err(Problem::param("dest", format!("`{text}` is not an address: {e}"))
            .help("dest= takes a service, an interface, \"host:port\" or a CIDR block such as \"10.0.0.0/8\"")),
    }
}

fn addresses(interface: &InterfaceValue) -> Vec<SocketAddr> {
    [Some(interface.decl.addr), interface.decl.proxy_addr]
        .into_iter()
        .flatten()
        .flat_map(names_of)
        .collect()
}

/// What a service's address may be called: on this machine "localhost" may be of either family, and "any address" is this machine.
fn names_of(addr: SocketAddr) -> Vec<SocketAddr> {
    let here = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ];
    match here.contains(&addr.ip().to_canonical()) {
        true => here.map(|ip| SocketAddr::new(ip, addr.port())).to_vec(),
        false => vec![addr],
    }
}

/// The addresses behind "host:port".
///
/// # Errors
/// It has no port, or the host is unknown.
pub fn resolve(text: &str) -> Result<Vec<SocketAddr>, String> {
    if !text.contains(':') {
        return Err("it has no port".into());
    }
    let addrs: Vec<SocketAddr> = text
        .to_socket_addrs()
        .map_err(|e| e.to_string().to_lowercase())?
        .collect();
    if addrs.is_empty() {
        Err("the host has no address".into())
    } else {
        Ok(addrs)
    }
}

/// Calls that programs make on sockets only.
const ON_SOCKETS: &[&str] = &[
    "connect",
    "bind",
    "listen",
    "accept",
    "accept4",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "recvfrom",
    "recvmsg",
    "recvmmsg",
    "shutdown",
    "getsockname",
    "getpeername",
    "getsockopt",
    "setsockopt",
];
/// Calls that programs make on files only.
const ON_FILES: &[&str] = &[
    "sync_file_range",
    "syncfs",
    "fallocate",
    "ftruncate",
    "getdents",
    "getdents64",
];

/// What one action does, whatever syscalls it is put on.
struct Parsed {
    action: SyscallAction,
    rule: SyscallRule,
    exact: bool,
}

/// Checks an action's own arguments. Problems point into the call that made it.
///
/// # Errors
/// An unknown keyword or errno, a value of the wrong type, a missing argument.
pub fn check(action: &Action) -> Result<(), Problem> {
    parse(action).map(|_| ()).map_err(|p| p.at(&action.site))
}

fn parse(action: &Action) -> Result<Parsed, Problem> {
    if action.level == Level::Protocol {
        return Err(Problem::call(format!(
            "`{}` is a rule for an interface, not a syscall fault",
            action.name
        ))
        .help("put it into rules=[...] with an interface as the target; syscall keywords take deny, delay and allow"));
    }
    let table = params_of(action.name);
    let mut rule = SyscallRule {
        key: String::new(),
        syscalls: vec![],
        action: SyscallAction::Allow,
        trigger: faultbox_contract::TriggerSpec::default(),
        path: None,
        on: None,
        dest: None,
        existing: Existing::Keep,
        label: None,
        text: String::new(),
    };
    let (mut errno, mut held, mut jitter, mut exact) = (None, None, None, false);
    for ActionArg { name, value, dest } in &action.args {
        if *value == Arg::None {
            continue;
        }
        // A protocol rule names the time `delay=`; meaning is the same.
        let name = match name.as_str() {
            "delay" if action.name == "delay" => "duration",
            name => name,
        };
        super::params::known(action.name, name, &table)?;
        let refuse = |e: String| Problem::param(name, format!("`{name}`: {e}"));
        let kind = table
            .iter()
            .find(|p| p.name == name)
            .map_or(Kind::Json, |p| p.kind);
        let checked = || kind.check(value.clone()).map_err(refuse);
        let count = || checked().map(|a| a.as_int().map(|i| i.unsigned_abs()));
        let time = || match checked()?.as_duration() {
            Some(time) => super::params::bounded(time).map(Some).map_err(refuse),
            None => Ok(None),
        };
        match name {
            "errno" => errno = Some(errno_of(value)?),
            "duration" => held = time()?,
            "jitter" => jitter = time()?,
            "nth" => rule.trigger.nth = count()?,
            "after" => rule.trigger.after = count()?,
            "every" => rule.trigger.every = count()?,
            "times" => rule.trigger.times = count()?,
            "probability" => {
                rule.trigger.probability = Some(
                    match value {
                        Arg::Float(p) => duration::check_probability(*p),
                        Arg::Int(p) => duration::check_probability(*p as f64),
                        Arg::Str(p) => duration::parse_probability(p),
                        other => Err(format!(
                            "expected a float in 0..1 or \"20%\", got {}",
                            other.type_name()
                        )),
                    }
                    .map_err(refuse)?,
                );
            }
            "path" => {
                rule.path = match checked()?.as_str() {
                    Some(p) if !p.starts_with(['/', '*', '{', '[', '?']) => {
                        return Err(refuse(format!(
                            "`{p}` is relative, and is matched against absolute paths"
                        ))
                        .help(format!("write \"/{p}\" or \"**/{p}\"")));
                    }
                    Some(p) => Some(Glob::new(p, Dialect::Path).map_err(refuse)?),
                    None => None,
                }
            }
            "on" => {
                rule.on = checked()?.as_str().and_then(|w| match w {
                    "file" => Some(FdClass::File),
                    "socket" => Some(FdClass::Socket),
                    "pipe" => Some(FdClass::Pipe),
                    "tty" => Some(FdClass::Tty),
                    _ => None,
                });
            }
            "dest" => match dest {
                Some(dest) => rule.dest = Some(dest.clone()),
                None => {
                    return Err(refuse(format!(
                        "expected a service, an interface, \"host:port\" or a CIDR block, got {}",
                        value.type_name()
                    )));
                }
            },
            "exact" => exact = checked()? == Arg::Bool(true),
            "existing" => {
                rule.existing = match checked()?.as_str() {
                    Some("reset") => Existing::Reset,
                    _ => Existing::Keep,
                };
            }
            "label" => rule.label = checked()?.as_str().map(str::to_owned),
            _ => {}
        }
    }
    if let Some(why) = rule.trigger.never() {
        return Err(Problem::param("nth", why).help("count from the first call that matches"));
    }
    if rule.on == Some(FdClass::Socket) && rule.path.is_some() {
        return Err(
            Problem::param("path", "a socket has no path, so this never fires")
                .help("drop `on=\"socket\"`, or choose sockets by `dest=`"),
        );
    }
    if rule.dest.is_some() && rule.on.is_some_and(|on| on != FdClass::Socket) {
        return Err(
            Problem::param("dest", "only sockets have a peer, so this never fires")
                .help("drop `on=`, or drop `dest=`"),
        );
    }
    let parsed = match action.name {
        "deny" => match errno {
            Some((errno, name)) => SyscallAction::Deny { errno, name },
            None => {
                return Err(Problem::call("`deny` needs an errno")
                    .help("write deny(\"EIO\"), deny(\"ENOSPC\"), deny(\"ECONNREFUSED\")"));
            }
        },
        "delay" => match held {
            Some(duration) => SyscallAction::Delay {
                duration,
                jitter: jitter.unwrap_or_default(),
            },
            None => {
                return Err(
                    Problem::call("`delay` needs a duration").help("write delay(\"500ms\")")
                );
            }
        },
        _ => SyscallAction::Allow,
    };
    Ok(Parsed {
        action: parsed,
        rule,
        exact,
    })
}

fn errno_of(value: &Arg) -> Result<(i32, &'static str), Problem> {
    let Some(name) = value.as_str() else {
        return Err(Problem::param(
            "errno",
            format!(
                "`errno`: expected an errno's name, got {}",
                value.type_name()
            ),
        )
        .help("write deny(\"EIO\")"));
    };
    names::errno(name).ok_or_else(|| {
        let all: Vec<&str> = names::errnos().collect();
        let problem = Problem::param("errno", format!("`{name}` is no errno of Linux"));
        match nearest(name, &all) {
            Some(best) => problem.help(format!("did you mean \"{best}\"?")),
            None => problem.help("errno(3) lists them: \"EIO\", \"ENOSPC\", \"ECONNREFUSED\", ..."),
        }
    })
}

/// Puts an action on a service's syscalls: `key=action`.
///
/// # Errors
/// What [`check`] refuses; a key that is no op, family or syscall; keywords that do not go with it.
pub fn rule(
    service: &ServiceDecl,
    key: &str,
    action: &Action,
) -> Result<Arc<SyscallRule>, Problem> {
    let Parsed {
        action: does,
        mut rule,
        exact,
    } = parse(action).map_err(|p| p.at(&action.site))?;
    let (syscalls, path) = expand(service, key, exact)?;
    let own = |name: &str, message: String| Problem::param(name, message).at(&action.site);
    if let Some(path) = path {
        if rule.path.is_some() {
            return Err(own("path", format!("op `{key}` has a path of its own"))
                .help("give the path in one place"));
        }
        rule.path = Some(Glob::new(&path, Dialect::Path).map_err(|e| Problem::keyword(key, e))?);
    }
    let shapes = || {
        syscalls
            .iter()
            .map(|name| shape::of_number(names::syscall_number(name).unwrap_or(-1)))
    };
    for (name, asked, has, needs) in [
        (
            "path",
            rule.path.is_some(),
            shapes().any(|s| s.has_path()),
            "works on a file",
        ),
        (
            "on",
            rule.on.is_some(),
            shapes().any(|s| s.fd.is_some()),
            "takes a descriptor",
        ),
        (
            "dest",
            rule.dest.is_some(),
            shapes().any(|s| s.has_peer()),
            "has a peer",
        ),
    ] {
        if asked && !has {
            return Err(own(
                name,
                format!("no call that `{key}` stands for {needs}, so this never fires"),
            )
            .help(format!(
                "drop `{name}=`, or fault calls of which one {needs}"
            )));
        }
    }
    if let Some(on) = rule.on {
        let with_fd = || {
            syscalls
                .iter()
                .zip(shapes())
                .filter_map(|(c, s)| s.fd.map(|_| c))
        };
        let (sockets, files) = (
            with_fd().all(|c| ON_SOCKETS.contains(c)),
            with_fd().all(|c| ON_FILES.contains(c)),
        );
        if sockets && on != FdClass::Socket || files && on != FdClass::File {
            let only = if sockets { "sockets" } else { "files" };
            return Err(own(
                "on",
                format!("`{key}` works on {only} only, so this never fires"),
            )
            .help("drop `on=`"));
        }
    }
    let denies_connect =
        syscalls.contains(&"connect") && matches!(does, SyscallAction::Deny { .. });
    if rule.existing == Existing::Reset && !denies_connect {
        return Err(own(
            "existing",
            "`existing` goes with connect=deny(...) only".into(),
        )
        .help("it says what happens to connections that exist when a connect fault is armed"));
    }
    rule.text = format!("{key}={action}");
    rule.key = key.to_owned();
    rule.syscalls = syscalls;
    rule.action = does;
    Ok(Arc::new(rule))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_of_a_family_exists_somewhere() {
        for (family, members) in FAMILIES {
            for member in *members {
                assert!(
                    known(member).is_some() || names::syscall_known_elsewhere(member),
                    "{family}: {member}"
                );
            }
        }
    }

    #[test]
    fn exact_keeps_one() {
        assert_eq!(expand_plain("write", true).unwrap(), ["write"]);
        assert!(expand_plain("write", false).unwrap().contains(&"pwritev2"));
        assert!(expand_plain("send", true).is_err());
        assert_eq!(expand_plain("io_submit", false).unwrap(), ["io_submit"]);
    }
}
