//! The steps of specs: one exchange on a socket of its own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use faultbox_contract::{Arg, CheckedStep, Endpoint, Kind, ParamDoc, Response, StepDoc};
use faultbox_engine::errno_name;
use serde_json::Value;
use tokio::net::UdpSocket;

/// The table.
pub const DOCS: &[StepDoc] = &[StepDoc {
    name: "send",
    params: &[
        ParamDoc::req("data", Kind::Bytes, "the datagram to send"),
        ParamDoc::opt(
            "expect",
            Kind::ChoiceOrInt(&["reply", "none"]),
            "what to wait for: one datagram (default), nothing, or so many datagrams",
        ),
        ParamDoc::opt(
            "timeout",
            Kind::Duration,
            "the longest the whole exchange may take (default 5s)",
        ),
    ],
    variadic: false,
    summary: "sends one datagram, then waits for the answer; `.data` is its text, or with a number the list of texts that came",
}];

/// Datagrams get lost; a test that waits for one for half a minute learns nothing more.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most datagrams that a step keeps.
const MOST: usize = 10_000;
/// More than the largest datagram has (udp(7)).
const LARGEST: usize = 64 << 10;

/// A socket that speaks with `to` alone and hears its refusals.
///
/// # Errors
/// What bind(2) and connect(2) say.
pub async fn connect(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// Sends, and waits for what is expected.
pub async fn send(endpoint: &Endpoint, call: &CheckedStep) -> Response {
    let (want, listed) = match call.get("expect") {
        Some(Arg::Int(n)) => (usize::try_from(*n).unwrap_or(usize::MAX).min(MOST), true),
        Some(Arg::Str(word)) if word == "none" => (0, false),
        _ => (1, false),
    };
    let data = match call.get("data") {
        Some(Arg::Bytes(bytes)) => bytes.clone(),
        other => other.and_then(Arg::as_str).unwrap_or_default().into(),
    };
    let limit = call
        .get("timeout")
        .and_then(Arg::as_duration)
        .unwrap_or(PATIENCE);
    let mut replies: Vec<Value> = vec![];
    let mut body = String::new();
    let start = Instant::now();
    let outcome = tokio::time::timeout(limit, async {
        let socket = connect(endpoint.addr).await?;
        socket.send(&data).await?;
        let mut buffer = vec![0; LARGEST];
        while replies.len() < want {
            let n = socket.recv(&mut buffer).await?;
            let text = String::from_utf8_lossy(&buffer[..n]);
            body.push_str(&text);
            replies.push(text.into());
        }
        io::Result::Ok(())
    })
    .await;
    let duration = start.elapsed();
    let (code, error) = match outcome {
        Ok(Ok(())) => (String::new(), String::new()),
        Ok(Err(e)) => (errno_name(&e), e.to_string()),
        Err(_) => (
            "ETIMEDOUT".into(),
            format!(
                "{} of {want} datagrams came within {}",
                replies.len(),
                faultbox_contract::duration::show(limit)
            ),
        ),
    };
    Response {
        ok: error.is_empty(),
        code,
        data: match listed {
            true => Value::Array(replies),
            false => replies.pop().unwrap_or_default(),
        },
        body,
        error,
        duration,
        ..Response::default()
    }
}

/// A server whose port is bound is ready. No datagram is sent: what a server makes of one that it does not know is its own affair.
/// Of a server on another machine nothing can be known, and it counts as ready.
///
/// # Errors
/// Why it is not.
pub fn ready(endpoint: &Endpoint) -> Result<(), String> {
    let addr = endpoint.addr;
    // An address can be bound exactly if it is this machine's own. The server's port must not be tried: that would be in its way.
    let own = std::net::UdpSocket::bind((addr.ip(), 0)).is_ok();
    if !own || is_bound(addr)? {
        return Ok(());
    }
    Err("nobody has bound the port".into())
}

/// Is there a UDP socket that receives what is sent to `addr`, in this network namespace?
fn is_bound(addr: SocketAddr) -> Result<bool, String> {
    let tables = ["udp", "udp6"].map(|t| format!("/proc/self/net/{t}"));
    // A kernel without IPv6 has one of the two.
    let texts: Vec<String> = tables
        .iter()
        .filter_map(|t| std::fs::read_to_string(t).ok())
        .collect();
    if texts.is_empty() {
        return Err(format!("{} cannot be read", tables[0]));
    }
    let receives = |line: &str| {
        let local = line.split_ascii_whitespace().nth(1).and_then(parse_local);
        local.is_some_and(|(ip, port)| {
            port == addr.port()
                && (ip.is_unspecified() || ip.to_canonical() == addr.ip().to_canonical())
        })
    };
    Ok(texts.iter().flat_map(|t| t.lines().skip(1)).any(receives))
}

/// An address as proc_pid_net(5) shows it: 32-bit words in the machine's byte order, in hex.
fn parse_local(text: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = text.split_once(':')?;
    let words: Option<Vec<[u8; 4]>> = (0..ip.len() / 8)
        .map(|i| {
            let word = u32::from_str_radix(ip.get(i * 8..i * 8 + 8)?, 16).ok()?;
            Some(word.to_ne_bytes())
        })
        .collect();
    let octets = words?.concat();
    let ip = match <[u8; 4]>::try_from(octets.as_slice()) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(octets.as_slice()).ok()?),
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_ready_when_somebody_has_bound_it() {
        for (bind, ask) in [
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.1"),
            ("::", "127.0.0.1"),
            ("::1", "::1"),
        ] {
            let bind: IpAddr = bind.parse().unwrap();
            let Ok(server) = std::net::UdpSocket::bind((bind, 0)) else {
                eprintln!("skipped {bind}: not available here");
                continue;
            };
            let port = server.local_addr().unwrap().port();
            let addr = SocketAddr::new(ask.parse().unwrap(), port);
            assert!(is_bound(addr).unwrap(), "{bind}");
            drop(server);
            assert!(!is_bound(addr).unwrap(), "{bind}");
        }
    }
}
