//! `mock_service(...)`, `reply(...)`, `sequence(...)`: scripted dependencies.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use faultbox_mocks::plan::{Answer, Answers, Certificate, End, Face, Reply, Route};
use faultbox_mocks::{Mistake, PROTOCOLS, keywords, script::SHORTHAND};
use starlark::codemap::FileSpan;
use starlark::collections::SmallMap;
use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;
use starlark::values::dict::DictRef;
use starlark::values::list::ListRef;
use starlark::values::tuple::UnpackTuple;

use super::service::{attach, positional, read_depends_on, read_service_name};
use crate::plan::{Health, IoUring, Launch, ServiceDecl};
use crate::spec::context::{ServiceEntry, World, call_site, declaring, register as keep, site_pos};
use crate::spec::convert::{arg_of, kind_of};
use crate::spec::params::{callable, dict, given, is_callable, list, text};
use crate::spec::problem::{Place, Problem, one_of};
use crate::spec::values::interface::InterfaceValue;
use crate::spec::values::reply::{ReplyValue, SequenceValue};
use crate::spec::values::service::ServiceValue;
use faultbox_contract::rule::nearest_hint;

/// How long a mock may take until it listens: it has nothing to do but that.
const READY: Duration = Duration::from_secs(10);

/// Answers with where each was made.
type Sited = (Answers, Vec<Option<FileSpan>>);

/// One answer: a reply, a function of the request, or a value that the protocol takes for a reply.
fn read_answer<'v>(
    eval: &Evaluator<'v, '_, '_>,
    world: &World,
    value: Value<'v>,
) -> Result<(Answer, Option<FileSpan>), String> {
    if let Some(reply) = ReplyValue::from_value(value) {
        return Ok((Answer::Reply(reply.reply.clone()), reply.site.clone()));
    }
    if is_callable(value) {
        if let Some(spec) = value.parameters_spec()
            && !spec.can_fill_with_args(1, &[])
        {
            return Err(format!(
                "a route's function must be callable with one argument, the request, and this one takes ({})",
                spec.parameters_str()
            ));
        }
        return Ok((Answer::Function(keep(eval, world, value).0), None));
    }
    Ok((Answer::Reply(plain(value)?), None))
}

/// A value that is no `reply()`, as a reply.
fn plain(value: Value) -> Result<Reply, String> {
    if ServiceValue::from_value(value).is_some() || InterfaceValue::from_value(value).is_some() {
        return Err(format!("expected reply(...), got {}", kind_of(value)));
    }
    Ok(Reply {
        args: vec![(SHORTHAND.to_owned(), arg_of(value)?)],
    })
}

/// What a function of the spec has returned: a reply, a value that stands for one, or None.
///
/// # Errors
/// It is none of these.
pub fn returned(value: Value) -> Result<Option<Reply>, String> {
    if value.is_none() {
        return Ok(None);
    }
    match ReplyValue::from_value(value) {
        Some(reply) => Ok(Some(reply.reply.clone())),
        None => plain(value).map(Some),
    }
}

/// The answers of one route: one, or a list of them.
fn read_answers<'v>(
    eval: &Evaluator<'v, '_, '_>,
    world: &World,
    place: &Place,
    value: Value<'v>,
) -> Result<Sited, Problem> {
    if let Some(sequence) = SequenceValue::from_value(value) {
        return Ok((sequence.answers.clone(), sequence.sites.clone()));
    }
    let values = match ListRef::from_value(value) {
        Some(list) => list.iter().collect(),
        None => vec![value],
    };
    read_sequence(eval, world, place, values, End::Last)
}

fn read_sequence<'v>(
    eval: &Evaluator<'v, '_, '_>,
    world: &World,
    place: &Place,
    values: Vec<Value<'v>>,
    end: End,
) -> Result<Sited, Problem> {
    if values.is_empty() {
        return Err(
            Problem::new(place.clone(), "a sequence of answers without any")
                .help("give it at least one; after the last, the last one repeats"),
        );
    }
    let (mut answers, mut sites) = (vec![], vec![]);
    for value in values {
        let (answer, site) =
            read_answer(eval, world, value).map_err(|e| Problem::new(place.clone(), e))?;
        answers.push(answer);
        sites.push(site);
    }
    Ok((Answers { list: answers, end }, sites))
}

/// Where the n-th route is: its value, or else its pattern.
type PlaceOf = Box<dyn Fn(usize, bool) -> Place>;

/// The routes and the default of one interface, with where their parts are.
struct Script<'v> {
    /// The dict of routes, and where it is.
    routes: Option<(Value<'v>, PlaceOf)>,
    /// The default.
    default: Option<(Value<'v>, Place)>,
    /// Is it all of the mock's?
    alone: bool,
}

/// What is meant for each interface: with several, `routes` and `default` are dicts by the interfaces' names.
fn split<'v>(
    name: &str,
    interfaces: &[InterfaceValue],
    routes: Option<Value<'v>>,
    default: Option<Value<'v>>,
) -> Result<Vec<Script<'v>>, Problem> {
    if let [_] = interfaces {
        let at = |entry: usize, value: bool| match value {
            true => Place::Entry("routes".into(), entry),
            false => Place::Item("routes".into(), entry),
        };
        return Ok(vec![Script {
            routes: routes.map(|v| (v, Box::new(at) as PlaceOf)),
            default: default.map(|v| (v, Place::Param("default".into()))),
            alone: true,
        }]);
    }
    let names: Vec<&str> = interfaces.iter().map(|i| i.decl.name.as_str()).collect();
    let by_name = |keyword: &'static str, value: Option<Value<'v>>| {
        let mut found: Vec<Option<(Value<'v>, usize)>> = vec![None; names.len()];
        let Some(value) = value else {
            return Ok(found);
        };
        for (i, (key, value)) in dict(keyword, value)?.into_iter().enumerate() {
            let at = key
                .unpack_str()
                .and_then(|key| names.iter().position(|n| *n == key));
            let Some(at) = at else {
                return Err(Problem::new(
                    Place::Item(keyword.into(), i),
                    format!("`{keyword}`: mock {name} has no interface {key}"),
                )
                .help(format!(
                    "with several interfaces, they come first: {keyword}={{\"{}\": ...}}; {}",
                    names[0],
                    one_of(key.unpack_str().unwrap_or_default(), &names)
                )));
            };
            found[at] = Some((value, i));
        }
        Ok(found)
    };
    let (routes, defaults) = (by_name("routes", routes)?, by_name("default", default)?);
    Ok(routes
        .into_iter()
        .zip(defaults)
        .map(|(routes, default)| Script {
            routes: routes.map(|(value, i)| {
                let at = move |_, _| Place::Entry("routes".into(), i);
                (value, Box::new(at) as PlaceOf)
            }),
            default: default.map(|(value, i)| (value, Place::Entry("default".into(), i))),
            alone: false,
        })
        .collect())
}

/// Reads and checks what one interface answers.
fn read_face<'v>(
    eval: &Evaluator<'v, '_, '_>,
    world: &World,
    interface: &InterfaceValue,
    script: Script<'v>,
    descriptors: Option<PathBuf>,
) -> Result<Face, Problem> {
    let decl = &interface.decl;
    let mut face = Face {
        name: decl.name.clone(),
        protocol: decl.protocol.to_owned(),
        addr: decl.addr,
        advertised: decl.consumer_addr(),
        routes: vec![],
        default: None,
        descriptors,
        certificate: decl.tls.and_then(|id| {
            let made = world.declared();
            let decl = made.certificates.get(id)?;
            Some(Certificate {
                cert: decl.cert.clone(),
                key: decl.key.clone(),
            })
        }),
    };
    let mut sites = vec![];
    if let Some((value, at)) = &script.routes {
        let Some(routes) = DictRef::from_value(*value) else {
            let place = match script.alone {
                true => Place::Param("routes".into()),
                false => at(0, true),
            };
            return Err(Problem::new(
                place,
                format!("`routes`: expected dict, got {}", kind_of(*value)),
            )
            .help("write routes={\"GET /orders/*\": reply(...)}"));
        };
        for (i, (pattern, answer)) in routes.iter().enumerate() {
            let Some(pattern) = pattern.unpack_str() else {
                return Err(Problem::new(
                    at(i, false),
                    format!("a route is a string, not {}", kind_of(pattern)),
                ));
            };
            let (answers, made) = read_answers(eval, world, &at(i, true), answer)?;
            face.routes.push(Route {
                pattern: pattern.to_owned(),
                answers,
            });
            sites.push(made);
        }
    }
    let mut default_sites = vec![];
    if let Some((value, place)) = &script.default {
        let (answers, made) = read_answers(eval, world, place, *value)?;
        face.default = Some(answers);
        default_sites = made;
    }
    faultbox_mocks::check(&face).map_err(|mistake| {
        let Mistake {
            route,
            answer,
            error,
        } = mistake;
        let made = match route {
            Some(route) => sites.get(route),
            None => Some(&default_sites),
        };
        let site = answer
            .and_then(|n| made.and_then(|sites| sites.get(n)))
            .and_then(Clone::clone);
        let unknown = error.message.contains("has no keyword");
        let problem = |place| Problem {
            help: error.hint.clone(),
            ..Problem::new(place, error.message.clone())
        };
        match (site, &error.arg) {
            (Some(site), Some(arg)) if !arg.is_empty() => problem(match unknown {
                true => Place::Keyword(arg.clone()),
                false => Place::Param(arg.clone()),
            })
            .at(&site),
            (Some(site), _) => problem(Place::Call).at(&site),
            (None, Some(arg)) if arg == "descriptors" => problem(Place::Param(arg.clone())),
            (None, _) => problem(match (route, &script.routes, &script.default) {
                (Some(i), Some((_, at)), _) => at(i, answer.is_some()),
                (None, _, Some((_, place))) if answer.is_some() => place.clone(),
                _ => Place::Call,
            }),
        }
    })?;
    Ok(face)
}

/// Refuses interfaces that a mock cannot have.
fn check_interfaces(
    name: &str,
    interfaces: &[InterfaceValue],
    written: &[(Place, Value)],
) -> Result<(), Problem> {
    if interfaces.is_empty() {
        return Err(Problem::call(format!("mock {name} has no interface"))
            .help("write mock_service(name, interface(\"http\", \"http\", 0), routes={...})"));
    }
    for (interface, (place, _)) in interfaces.iter().zip(written) {
        let place = place.clone();
        let protocol = interface.decl.protocol;
        if !PROTOCOLS.contains(&protocol) {
            return Err(
                Problem::new(place, format!("protocol {protocol} cannot be mocked"))
                    .help(format!("those that can are {}", PROTOCOLS.join(", "))),
            );
        }
        if !interface.decl.addr.ip().is_loopback() {
            return Err(Problem::new(
                place,
                format!(
                    "a mock listens on loopback only, and {} is elsewhere",
                    interface.decl.addr
                ),
            )
            .help("leave `host=` out"));
        }
    }
    Ok(())
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// Declares a service that answers as the spec says: `mock_service("payments", interface("http", "http", 0), routes={"POST /charges": reply(status=201, json={...})})`.
    ///
    /// It is a service like any other: others depend on it and find it in `FAULTBOX_*`, steps and rules work on its interfaces, `kill()`,
    /// `pause()` and `partition()` on itself; it is refused where system calls are meant. The first route that matches answers; its value is a
    /// `reply()`, a list of them (one after another; the last repeats), a `sequence()`, a function of the request, or a plain value.
    /// `default` answers where no route matches; without it, the protocol's own error does (404, an unknown command, UNIMPLEMENTED).
    /// With several interfaces, both are dicts by the interfaces' names. What it was asked, `calls()` and `assert_called()` tell.
    ///
    /// Keywords: `depends_on`, `seed` (a function called when it is ready), `descriptors` (gRPC: a file with a descriptor set).
    fn mock_service<'v>(
        #[starlark(args)] args: UnpackTuple<Value<'v>>,
        #[starlark(require = named)] name: Option<Value<'v>>,
        #[starlark(require = named)] routes: Option<Value<'v>>,
        #[starlark(require = named)] default: Option<Value<'v>>,
        #[starlark(require = named)] depends_on: Option<Value<'v>>,
        #[starlark(require = named)] seed: Option<Value<'v>>,
        #[starlark(require = named)] descriptors: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<ServiceValue> {
        let (world, site) = declaring(eval, "mock_service")?;
        let mut positional = positional(&args);
        let name = read_service_name(world, "mock_service", name, &mut positional)?;
        let interfaces = attach(world, &name, &positional, None)?;
        check_interfaces(&name, &interfaces, &positional)?;
        let descriptors = given(descriptors)
            .map(|v| text("descriptors", v))
            .transpose()?
            .map(|path| world.folder.join(path));
        if descriptors.is_some() && interfaces.iter().all(|i| i.decl.protocol != "grpc") {
            return Err(Problem::keyword(
                "descriptors",
                format!("`descriptors=` belongs to gRPC, which mock {name} does not speak"),
            )
            .into());
        }
        if let Some(path) = &descriptors
            && let Err(e) = std::fs::metadata(path)
        {
            return Err(Problem::param(
                "descriptors",
                format!("`descriptors`: {}: {e}", path.display()),
            )
            .help("make it with `protoc --include_imports --descriptor_set_out=FILE`")
            .into());
        }
        let scripts = split(&name, &interfaces, given(routes), given(default))?;
        let mut faces = vec![];
        for (interface, script) in interfaces.iter().zip(scripts) {
            let own = descriptors
                .clone()
                .filter(|_| interface.decl.protocol == "grpc");
            faces.push(read_face(eval, world, interface, script, own)?);
        }
        let (after, by_name) = read_depends_on(given(depends_on))?;
        // The last interface listens last.
        let health = faces.last().map(|face| Health::Tcp {
            addr: face.addr.to_string(),
            timeout: READY,
        });
        let decl = Arc::new(ServiceDecl {
            name,
            launch: Launch::Mock {
                faces: Arc::new(faces),
            },
            interfaces: interfaces.iter().map(|i| i.decl.clone()).collect(),
            args: vec![],
            env: std::collections::BTreeMap::new(),
            cwd: world.folder.clone(),
            depends_on: after,
            health,
            ops: std::collections::BTreeMap::new(),
            observe: vec![],
            stop_signal: nix::libc::SIGTERM,
            stop_timeout: Duration::from_secs(2),
            user: None,
            io_uring: IoUring::Auto,
            pos: site_pos(&site),
        });
        let seed = match given(seed) {
            Some(value) => Some(keep(eval, world, callable("seed", value)?)),
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

    /// What a mock answers: `reply(status=201, json={"id": 1}, delay="50ms")`.
    ///
    /// Every protocol takes `delay`. http: `status`, `body`, `json`, `headers`; redis: `value`, `type`, `error`; kafka: `error`; grpc: `body`
    /// (a list of them where the method streams), `raw`, `code`, `message`, `details`, `headers`, `trailers`. On redis and kafka a
    /// reply without an answer lets the keyspace or the broker answer, after the delay.
    fn reply<'v>(
        #[starlark(kwargs)] kwargs: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<ReplyValue> {
        let known: Vec<&str> = keywords().iter().map(|p| p.name).collect();
        let mut args = vec![];
        for (name, value) in kwargs {
            if !known.contains(&name.as_str()) {
                return Err(
                    Problem::keyword(&name, format!("`reply` has no keyword `{name}`"))
                        .help(nearest_hint(&name, &known))
                        .label("unknown keyword")
                        .into(),
                );
            }
            let arg = arg_of(value).map_err(|e| Problem::param(&name, format!("`{name}`: {e}")))?;
            args.push((name, arg));
        }
        Ok(ReplyValue {
            reply: Reply { args },
            site: call_site(eval),
        })
    }

    /// Answers of a mock one after another: `sequence([reply(status=503), reply()], end="cycle")`.
    ///
    /// `end` is what comes after the last: "last" (it repeats, as in a plain list), "cycle" (the first again), or "default" (as if the
    /// route were not there).
    fn sequence<'v>(
        answers: Value<'v>,
        #[starlark(require = named)] end: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<SequenceValue> {
        let (world, _) = declaring(eval, "sequence")?;
        let end = match given(end).map(|v| text("end", v)).transpose()?.as_deref() {
            None | Some("last") => End::Last,
            Some("cycle") => End::Cycle,
            Some("default") => End::Default,
            Some(other) => {
                return Err(Problem::param(
                    "end",
                    format!("`end`: expected \"last\" | \"cycle\" | \"default\", got \"{other}\""),
                )
                .into());
            }
        };
        let values = list("answers", answers)?;
        let place = Place::Param("answers".into());
        let (answers, sites) = read_sequence(eval, world, &place, values, end)?;
        Ok(SequenceValue { answers, sites })
    }
}

/// Adds them.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
