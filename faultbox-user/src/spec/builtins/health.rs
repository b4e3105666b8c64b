//! `tcp http ready cmd`: when a service counts as ready.

use std::time::Duration;

use starlark::environment::GlobalsBuilder;
use starlark::starlark_module;
use starlark::values::Value;

use crate::plan::Health;
use crate::spec::convert::int_of;
use crate::spec::params::{given, list, span, text, texts};
use crate::spec::problem::Problem;
use crate::spec::syscalls::resolve;
use crate::spec::values::health::HealthValue;
use crate::spec::values::interface::InterfaceValue;

fn timeout(value: Option<Value>, seconds: u64) -> Result<Duration, Problem> {
    given(value).map_or(Ok(Duration::from_secs(seconds)), |v| span("timeout", v))
}

/// `status=`: one code, or (lowest, highest), or "200..399".
fn statuses(value: Value) -> Result<(u16, u16), Problem> {
    let code = |i: i64| {
        u16::try_from(i)
            .ok()
            .filter(|c| (100..=999).contains(c))
            .ok_or_else(|| Problem::param("status", format!("`status`: {i} is no HTTP status")))
    };
    if let Some(one) = int_of(value) {
        let one = code(one)?;
        return Ok((one, one));
    }
    let bounds: Option<Vec<i64>> = match value.unpack_str() {
        Some(text) => text
            .split("..")
            .map(|n| n.trim().parse().ok())
            .collect::<Option<Vec<_>>>(),
        None => list("status", value)
            .ok()
            .and_then(|items| items.into_iter().map(int_of).collect()),
    };
    match bounds.as_deref() {
        Some([low, high]) if low <= high => Ok((code(*low)?, code(*high)?)),
        _ => Err(Problem::param(
            "status",
            format!("`status`: {value} is neither a status nor a range of them"),
        )
        .help("write 200, or \"200..399\", or (200, 399)")),
    }
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// Ready when a TCP connection succeeds: `healthcheck=tcp("127.0.0.1:5432")`, or an interface.
    fn tcp<'v>(
        addr: Value<'v>,
        #[starlark(require = named)] timeout: Option<Value<'v>>,
    ) -> starlark::Result<HealthValue> {
        let addr = match InterfaceValue::from_value(addr) {
            Some(interface) => interface.decl.addr.to_string(),
            None => {
                let text = text("addr", addr)?;
                resolve(&text).map_err(|e| {
                    Problem::param("addr", format!("`{text}` is not an address: {e}"))
                        .help("write \"127.0.0.1:5432\", or give an interface")
                })?;
                text
            }
        };
        Ok(HealthValue(Health::Tcp {
            addr,
            timeout: self::timeout(timeout, 10)?,
        }))
    }

    /// Ready when a GET answers with a status in range: `healthcheck=http("http://127.0.0.1:8080/health", status=200)`.
    /// Of an https:// URL the certificate is not looked at. `status` is one code, "200..399" (the default), or (200, 399).
    fn http<'v>(
        url: Value<'v>,
        #[starlark(require = named)] status: Option<Value<'v>>,
        #[starlark(require = named)] timeout: Option<Value<'v>>,
    ) -> starlark::Result<HealthValue> {
        let url = text("url", url)?;
        let rest = url
            .strip_prefix("http://")
            .or_else(|| url.strip_prefix("https://"));
        if rest.is_none_or(str::is_empty) {
            return Err(Problem::param(
                "url",
                format!("`{url}` is not an http:// or https:// URL"),
            )
            .help("write \"http://127.0.0.1:8080/health\"")
            .into());
        }
        let (low, high) = given(status).map_or(Ok((200, 399)), statuses)?;
        Ok(HealthValue(Health::Http {
            url,
            low,
            high,
            timeout: self::timeout(timeout, 10)?,
        }))
    }

    /// Ready when the interface answers in its own protocol (`SELECT 1`, `GET /`): `healthcheck=ready()`.
    /// `interface` is a name; without it, the service's only or `default` interface.
    fn ready<'v>(
        #[starlark(require = named)] interface: Option<Value<'v>>,
        #[starlark(require = named)] timeout: Option<Value<'v>>,
    ) -> starlark::Result<HealthValue> {
        let interface = match given(interface) {
            None => None,
            Some(value) => Some(match InterfaceValue::from_value(value) {
                Some(interface) => interface.decl.name.clone(),
                None => text("interface", value)?,
            }),
        };
        Ok(HealthValue(Health::Ready {
            interface,
            timeout: self::timeout(timeout, 30)?,
        }))
    }

    /// Ready when a command exits with 0: `healthcheck=cmd(["pg_isready", "-p", "5432"])`.
    fn cmd<'v>(
        argv: Value<'v>,
        #[starlark(require = named)] timeout: Option<Value<'v>>,
    ) -> starlark::Result<HealthValue> {
        let argv = texts("argv", argv)?;
        if argv.is_empty() {
            return Err(Problem::param("argv", "`argv` is empty")
                .help("write cmd([\"pg_isready\", \"-p\", \"5432\"])")
                .into());
        }
        Ok(HealthValue(Health::Cmd {
            argv,
            timeout: self::timeout(timeout, 10)?,
        }))
    }
}

/// Adds them.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
