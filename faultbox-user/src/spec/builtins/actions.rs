//! What a fault does: `deny delay allow` on syscalls, `error response delay drop …` on a protocol's requests.

use starlark::collections::SmallMap;
use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;

use crate::spec::context::call_site;
use crate::spec::convert::arg_of;
use crate::spec::problem::Problem;
use crate::spec::syscalls;
use crate::spec::values::action::{Action, ActionArg, Level};
use crate::spec::values::interface::InterfaceValue;
use faultbox_contract::Arg;

/// Puts an action together; what it means is decided where it is used.
fn action<'v>(
    eval: &Evaluator<'v, '_, '_>,
    name: &'static str,
    level: Level,
    positional: Option<(&str, Value<'v>)>,
    keywords: SmallMap<String, Value<'v>>,
) -> starlark::Result<Action> {
    let site = call_site(eval).ok_or_else(|| Problem::call("must be called from a spec file"))?;
    let mut args = vec![];
    let given = positional
        .map(|(n, v)| (n.to_owned(), v))
        .into_iter()
        .chain(keywords);
    for (name, value) in given {
        let dest = if name == "dest" {
            syscalls::dest_of(value)?
        } else {
            None
        };
        let value = match InterfaceValue::from_value(value) {
            // Only `dest=` takes an interface, and has read it above; elsewhere its name makes the message.
            Some(interface) if name == "dest" => Arg::Service(interface.path()),
            _ => arg_of(value).map_err(|e| Problem::param(&name, format!("`{name}`: {e}")))?,
        };
        args.push(ActionArg { name, value, dest });
    }
    let action = Action {
        name,
        level,
        args,
        site,
    };
    if level == Level::Syscall {
        syscalls::check(&action)?;
    }
    Ok(action)
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// The syscall fails with `errno` and has no effect: `write=deny("EIO")`.
    ///
    /// Keywords: `probability` (0..1 or "20%"), `nth` (only the n-th matching call), `after` (all past the n-th), `every`, `times`
    /// (at most n), `path` (glob on the resolved absolute path), `on` ("file", "socket", "pipe", "tty"), `dest` (service, interface,
    /// "host:port" or CIDR), `exact=True` (this syscall only, not its family), `existing` ("keep" or "reset", with `connect=`), `label`.
    fn deny<'v>(
        errno: Value<'v>,
        #[starlark(kwargs)] kwargs: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Action> {
        action(eval, "deny", Level::Syscall, Some(("errno", errno)), kwargs)
    }

    /// On syscalls, holds the call, then lets it run: `write=delay("500ms", jitter="50ms")`, with the keywords of `deny`.
    /// On an interface, holds the matching request: `delay(path="/search*", delay="2s")`.
    fn delay<'v>(
        #[starlark(require = pos)] duration: Option<Value<'v>>,
        #[starlark(kwargs)] kwargs: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Action> {
        let duration = duration.map(|d| ("duration", d));
        action(eval, "delay", Level::Both, duration, kwargs)
    }

    /// An explicit exception: calls it matches are not faulted by faults applied earlier. Takes the keywords of `deny`.
    fn allow<'v>(
        #[starlark(kwargs)] kwargs: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Action> {
        action(eval, "allow", Level::Syscall, None, kwargs)
    }

    /// The request gets the protocol's own error: `error(query="INSERT*", message="disk full")`. Which matchers and keywords a
    /// protocol takes, `faultbox protocols` tells; all rules take `probability nth after every times label source`.
    fn error<'v>(
        #[starlark(kwargs)] kwargs: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Action> {
        action(eval, "error", Level::Protocol, None, kwargs)
    }

    /// The request gets this reply: `response(path="/api/*", status=429)`.
    fn response<'v>(
        #[starlark(kwargs)] kwargs: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Action> {
        action(eval, "response", Level::Protocol, None, kwargs)
    }

    /// The request, message or connection is lost: what that means is the protocol's.
    fn drop<'v>(
        #[starlark(kwargs)] kwargs: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Action> {
        action(eval, "drop", Level::Protocol, None, kwargs)
    }

    /// The request or message arrives twice.
    fn duplicate<'v>(
        #[starlark(kwargs)] kwargs: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Action> {
        action(eval, "duplicate", Level::Protocol, None, kwargs)
    }

    /// The message arrives behind later ones.
    fn reorder<'v>(
        #[starlark(kwargs)] kwargs: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Action> {
        action(eval, "reorder", Level::Protocol, None, kwargs)
    }

    /// Bytes of the reply are changed.
    fn corrupt<'v>(
        #[starlark(kwargs)] kwargs: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Action> {
        action(eval, "corrupt", Level::Protocol, None, kwargs)
    }

    /// The reply is cut: after `bytes=`, where the protocol has streams of bytes.
    fn truncate<'v>(
        #[starlark(kwargs)] kwargs: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Action> {
        action(eval, "truncate", Level::Protocol, None, kwargs)
    }

    /// The bytes flow no faster than `rate=`: "64kbit", "10KB/s".
    fn throttle<'v>(
        #[starlark(kwargs)] kwargs: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Action> {
        action(eval, "throttle", Level::Protocol, None, kwargs)
    }

    /// The connection is reset.
    fn reset<'v>(
        #[starlark(kwargs)] kwargs: SmallMap<String, Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<Action> {
        action(eval, "reset", Level::Protocol, None, kwargs)
    }
}

/// Adds them.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
