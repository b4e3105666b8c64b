//! What the protocols of the web share: bodies, header fields and request targets as specs write them.

use std::borrow::Cow;

use faultbox_contract::rule::slip_of;
use faultbox_contract::{Arg, ArgError, CheckedStep, Dialect, Glob};
use serde_json::Value;

/// A body and the content type that it suggests: JSON for a dict, a list, or text that is one of these in JSON.
pub fn encode_body(body: &Arg) -> (Option<&'static str>, Vec<u8>) {
    match body {
        Arg::Json(value) => encode_json(value),
        Arg::Bytes(bytes) => (Some("application/octet-stream"), bytes.clone()),
        other => {
            let text = other.as_str().unwrap_or_default();
            let is_json = text.trim_start().starts_with(['{', '['])
                && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
            let kind = if is_json {
                "application/json"
            } else {
                "text/plain; charset=utf-8"
            };
            ((!text.is_empty()).then_some(kind), text.into())
        }
    }
}

/// A JSON body and its content type.
pub fn encode_json(value: &Value) -> (Option<&'static str>, Vec<u8>) {
    (Some("application/json"), value.to_string().into_bytes())
}

/// Header fields as a dict gave them, checked for what cannot stand in a head (RFC 9110, 5.5 and 5.6.2).
///
/// # Errors
/// Names the field that cannot be sent.
pub fn text_map(keyword: &str, map: Option<&Arg>) -> Result<Vec<(String, String)>, ArgError> {
    let Some(Arg::Json(Value::Object(map))) = map else {
        return Ok(vec![]);
    };
    map.iter()
        .map(|(name, value)| {
            let value = value.as_str().unwrap_or_default();
            if !is_token(name) {
                Err(ArgError::new(
                    keyword,
                    format!("`{name}` is not a header name"),
                ))
            } else if value.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
                Err(ArgError::new(
                    keyword,
                    format!("the value of `{name}` contains a line break or a NUL"),
                ))
            } else {
                Ok((name.clone(), value.to_owned()))
            }
        })
        .collect()
}

/// A token (RFC 9110, 5.6.2): what names of fields and methods are made of.
fn is_token(text: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(token)
}

/// The methods that are registered (IANA, "HTTP Method Registry"), those that everybody uses first.
const METHODS: &[&str] = &[
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "CONNECT",
    "TRACE",
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

/// Refuses a pattern of methods that is a slip: it would match nothing, and nobody would know. Letter case does not count, patterns with a glob's
/// characters may mean anything, and so may names that are like no registered one (PURGE): methods are an open set (RFC 9110, section 9.1).
///
/// # Errors
/// Names `arg`, and the method that was probably meant.
pub fn check_method(arg: &str, pattern: &str) -> Result<(), ArgError> {
    let registered = || METHODS.iter().any(|m| m.eq_ignore_ascii_case(pattern));
    if pattern.contains(['*', '?', '[', '{', '\\']) || registered() {
        return Ok(());
    }
    let error = |what| {
        let lead = if arg.is_empty() {
            String::new()
        } else {
            format!("`{arg}`: ")
        };
        ArgError::new(arg, format!("{lead}`{pattern}` is {what}"))
    };
    match slip_of(pattern, METHODS) {
        Some(meant) => {
            let (first, rest) = pattern.split_at(pattern.chars().next().map_or(0, char::len_utf8));
            Err(error("no method of HTTP").hint(format!(
                "did you mean `{meant}`? A method that is really called so is written as a pattern: `[{first}]{rest}`"
            )))
        }
        None if is_token(pattern) => Ok(()),
        None => Err(error("no method: those are words like GET")
            .hint("leave it out to match every method; `{GET,HEAD}` matches several")),
    }
}

/// A dict of names to globs, compiled.
///
/// # Errors
/// A pattern that is none; `name` is the keyword at fault.
pub fn globs(name: &str, map: &Arg) -> Result<Vec<(String, Glob)>, ArgError> {
    let Arg::Json(Value::Object(map)) = map else {
        return Ok(vec![]);
    };
    map.iter()
        .map(|(key, pattern)| {
            Glob::new(pattern.as_str().unwrap_or_default(), Dialect::Text)
                .map(|glob| (key.clone(), glob))
                .map_err(|e| ArgError::new(name, e))
        })
        .collect()
}

/// The request target of a step: `path=`, made fit for a request, and the parameters of `query=`.
///
/// # Errors
/// A path that does not begin with a `/`.
pub fn target(call: &CheckedStep) -> Result<String, ArgError> {
    let path = call.text_of("path").unwrap_or("/");
    if !path.starts_with('/') {
        return Err(
            ArgError::new("path", format!("`{path}` does not begin with a `/`"))
                .hint("a step takes a path; its interface says where it goes"),
        );
    }
    let mut target = String::new();
    for byte in path.bytes() {
        // What is escaped already stays; what cannot stand in a request line is escaped.
        if byte.is_ascii_graphic() {
            target.push(byte as char);
        } else {
            target.push_str(&format!("%{byte:02X}"));
        }
    }
    if let Some(Arg::Json(Value::Object(query))) = call.get("query") {
        for (name, value) in query {
            target.push(if target.contains('?') { '&' } else { '?' });
            percent_encode(name, &mut target);
            target.push('=');
            percent_encode(value.as_str().unwrap_or_default(), &mut target);
        }
    }
    Ok(target)
}

/// Escapes all but RFC 3986's unreserved characters.
fn percent_encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// The status as a message says it: in words, or where the registry has none by its number.
pub fn words(status: u16) -> Cow<'static, str> {
    match reason(status) {
        "" => format!("status {status}").into(),
        words => words.into(),
    }
}

/// The status in words (the IANA registry's, for those in use); empty for others, as RFC 9112 allows.
pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        511 => "Network Authentication Required",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_that_are_slips_are_refused() {
        let hint = |pattern| check_method("method", pattern).unwrap_err().hint.unwrap();
        for (slip, meant) in [
            ("GTE", "GET"),
            ("POTS", "POST"),
            ("gte", "GET"),
            ("DELET", "DELETE"),
            ("OPTION", "OPTIONS"),
            ("SET", "GET"),
        ] {
            assert!(
                hint(slip).contains(&format!("`{meant}`")),
                "{slip}: {}",
                hint(slip)
            );
        }
        assert!(hint("SET").contains("`[S]ET`"));
        for no_token in ["", " ", "GET POST", "GET,HEAD", "größer", "/orders"] {
            assert!(check_method("method", no_token).is_err(), "{no_token}");
        }
    }

    #[test]
    fn methods_that_may_be_meant_pass() {
        for fine in [
            "GET",
            "get",
            "PURGE",
            "BAN",
            "M-SEARCH",
            "G?T",
            "{get,post}",
            "*",
            "[S]ET",
            "PROPFIND",
            "PUT",
            "POST",
        ] {
            assert_eq!(check_method("method", fine), Ok(()), "{fine}");
        }
    }
}
