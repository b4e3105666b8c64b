//! Bytes that nobody has thought of, in both directions at once, through whole sessions: with no rule armed they pass unchanged;
//! with a rule armed every session still ends; nothing panics.
//!
//! [`body`] is the body of each protocol's fuzz target (`fuzz/fuzz_targets/`), and its property tests run the same on stable.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use faultbox_contract::{Arg, ArmedRule, Kind, Protocol, Transport};
use serde_json::{Value as Json, json};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::{Harness, converse};

/// Longer than any session takes on a loaded machine, shorter than what the fuzzer calls a hang.
const DEADLINE: Duration = Duration::from_secs(45);
/// How long a datagram may be on its way before the end of a session is said again.
const PAUSE: Duration = Duration::from_millis(20);
/// The first datagram of a session.
const HELLO: &[u8] = b"hello";
/// The last one.
const END: &[u8] = &[0xee; 64];
/// So many datagrams and bytes of one side find room in any socket's buffer.
const MANY: usize = 64;
const ROOM: usize = 1 << 16;

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// What one end heard, and whether it ended in good order.
pub type Heard = (Vec<u8>, bool);

/// How a session went.
#[derive(Debug)]
pub struct Session {
    /// What the client heard.
    pub client: Heard,
    /// What the server heard.
    pub server: Heard,
    /// What was degraded, and why.
    pub degradations: Vec<String>,
}

/// Runs one session through a proxy that `arm` has prepared: both ends say their chunks and close.
///
/// # Panics
/// If the session does not end, or a task of the proxy has panicked.
pub fn session(
    protocol: &'static dyn Protocol,
    client: Vec<Vec<u8>>,
    server: Vec<Vec<u8>>,
    arm: impl FnOnce(&Harness),
) -> Session {
    in_runtime(async {
        let listener = TcpListener::bind(ANY).await.expect("loopback");
        let upstream = listener.local_addr().expect("an address");
        let proxy = Harness::start(protocol, upstream);
        arm(&proxy);
        let stream = TcpStream::connect(proxy.addr).await.expect("the proxy");
        let (upstream, _) = listener.accept().await.expect("a connection");
        // A proxy that gives a request a new connection must not wait for it.
        let more = async {
            while let Ok((again, _)) = listener.accept().await {
                drop(again);
            }
        };
        let both = async { tokio::join!(converse(stream, client), converse(upstream, server)) };
        let (client, server) = tokio::select! {
            heard = both => heard,
            () = more => unreachable!("the listener never ends"),
        };
        Session {
            client,
            server,
            degradations: proxy.degradations(),
        }
    })
}

/// Runs one session of datagrams: the client's first makes the flow, `arm` prepares the proxy, then both say theirs. What the client
/// heard, and the server, until the end came through, which is said again and again because rules may act on it too.
///
/// # Panics
/// As [`session`].
pub fn datagrams(
    protocol: &'static dyn Protocol,
    client_says: &[Vec<u8>],
    server_says: &[Vec<u8>],
    arm: impl FnOnce(&Harness),
) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    in_runtime(async {
        let server = UdpSocket::bind(ANY).await.expect("loopback");
        let upstream = server.local_addr().expect("an address");
        let proxy = Harness::start(protocol, upstream);
        let client = UdpSocket::bind(ANY).await.expect("loopback");
        client.connect(proxy.addr).await.expect("the proxy");
        // The flow must be there before the server can speak.
        client.send(HELLO).await.expect("the proxy");
        let (_, flow) = server.recv_from(&mut [0; 8]).await.expect("a flow begins");
        server.connect(flow).await.expect("the proxy");
        arm(&proxy);
        for (from, says) in [(&client, client_says), (&server, server_says)] {
            for datagram in says {
                from.send(datagram).await.expect("the proxy");
            }
        }
        let to_server = until_end(&client, &server).await;
        (until_end(&server, &client).await, to_server)
    })
}

/// What arrives at `to` before the end.
async fn until_end(from: &UdpSocket, to: &UdpSocket) -> Vec<Vec<u8>> {
    let mut heard = vec![];
    let mut buffer = vec![0; ROOM];
    loop {
        from.send(END).await.expect("the proxy");
        while let Ok(got) = timeout(PAUSE, to.recv(&mut buffer)).await {
            let got = &buffer[..got.expect("the proxy")];
            if got == END {
                return heard;
            }
            heard.push(got.to_vec());
        }
    }
}

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Does the work of one session.
fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            print(info);
        }));
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let ended = runtime.block_on(async { timeout(DEADLINE, work).await });
    let done = ended.expect("every session ends");
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "a task has panicked");
    done
}

/// Arms a rule whose values are written as text; those that are numbers, lists or dicts become such.
///
/// # Panics
/// If the protocol refuses it.
pub fn arm(proxy: &Harness, (action, args): (&str, &[(&str, &str)])) {
    let value = |text: &str| match serde_json::from_str(text) {
        Ok(value @ (Json::Array(_) | Json::Object(_))) => Arg::Json(value),
        _ => match text.parse() {
            Ok(number) => Arg::Int(number),
            Err(_) => Arg::Str(text.into()),
        },
    };
    let args: Vec<(&str, Arg)> = args.iter().map(|(n, text)| (*n, value(text))).collect();
    proxy.arm(action, &args);
}

/// The server's chunks have this bit set in their length.
const SERVER: u16 = 1 << 15;
/// Of a protocol that speaks both: the chunks are datagrams.
pub const DATAGRAMS: u8 = 1 << 7;

/// A session as the bytes that [`body`] reads: which rule is armed (0: none), then chunks, each behind its length, two bytes, the lower
/// one first. Rules count through the protocol's actions, first without a matcher, then with each of its simple matchers in turn; where
/// bytes are matched by how they begin, last with a beginning that nothing has.
pub fn encode(rule: u8, client: &[Vec<u8>], server: &[Vec<u8>]) -> Vec<u8> {
    let mut out = vec![rule];
    let sides = client
        .iter()
        .map(|c| (c, 0))
        .chain(server.iter().map(|c| (c, SERVER)));
    for (chunk, side) in sides {
        // What is empty is a datagram, too.
        let parts = match chunk.is_empty() {
            true => vec![&chunk[..]],
            false => chunk.chunks(usize::from(SERVER - 1)).collect(),
        };
        for part in parts {
            out.extend((part.len() as u16 | side).to_le_bytes());
            out.extend(part);
        }
    }
    out
}

/// One session out of any bytes; see [`encode`]. What was degraded.
///
/// # Panics
/// If a session without rules is changed on its way, or one with a rule does not end.
pub fn body(protocol: &'static dyn Protocol, data: &[u8]) -> Vec<String> {
    let Some((&which, mut rest)) = data.split_first() else {
        return vec![];
    };
    let (mut client, mut server) = (vec![], vec![]);
    while let [low, high, tail @ ..] = rest {
        let head = u16::from_le_bytes([*low, *high]);
        let n = usize::from(head & !SERVER).min(tail.len());
        let side = if head & SERVER == 0 {
            &mut client
        } else {
            &mut server
        };
        side.push(tail[..n].to_vec());
        rest = &tail[n..];
    }
    let (rule, of_datagrams) = match protocol.transport() {
        Transport::Tcp => (which, false),
        Transport::Udp => (which, true),
        Transport::TcpAndUdp => (which & !DATAGRAMS, which & DATAGRAMS != 0),
    };
    if of_datagrams {
        fit(&mut client);
        fit(&mut server);
    }
    let stranger = match of_datagrams {
        true => stranger(client.iter().chain(&server).map(Vec::as_slice)),
        false => stranger([&client.concat()[..]].into_iter()),
    };
    let mut armed = None;
    let arm = |proxy: &Harness| {
        armed = arm_numbered(protocol, proxy, rule, of_datagrams, &stranger);
    };
    if of_datagrams {
        let (to_client, to_server) = datagrams(protocol, &client, &server, arm);
        if armed.is_none_or(|armed| armed.is_for_others()) {
            assert_eq!(to_server, client, "what the server heard");
            assert_eq!(to_client, server, "what the client heard");
        }
        return vec![];
    }
    let (said, answered) = (client.concat(), server.concat());
    let session = session(protocol, client, server, arm);
    if armed.is_none_or(|armed| armed.is_for_others()) {
        assert_eq!(session.server, (said, true), "what the server heard");
        assert_eq!(session.client, (answered, true), "what the client heard");
    }
    session.degradations
}

/// A beginning that none of these has: its n-th letter is not the n-th byte of the n-th of them.
fn stranger<'a>(said: impl Iterator<Item = &'a [u8]>) -> String {
    [HELLO, END]
        .into_iter()
        .chain(said)
        .enumerate()
        .map(|(n, bytes)| match bytes.get(n) {
            Some(b'a') => 'b',
            _ => 'a',
        })
        .collect()
}

/// Keeps as many as no buffer loses.
fn fit(datagrams: &mut Vec<Vec<u8>>) {
    datagrams.truncate(MANY);
    let mut room = ROOM;
    datagrams.retain(|d| {
        let fits = d.len() <= room && d != END;
        room -= if fits { d.len() } else { 0 };
        fits
    });
}

/// The rule of a session.
struct Armed {
    rule: Arc<ArmedRule>,
    /// Does it have a matcher that selects nothing?
    strange: bool,
}

impl Armed {
    /// Is it one that must leave everything as it is?
    fn is_for_others(&self) -> bool {
        assert!(
            !self.strange || self.rule.matched() == 0,
            "it selects nothing"
        );
        self.strange
    }
}

/// Arms the rule of this number; see [`encode`].
fn arm_numbered(
    protocol: &'static dyn Protocol,
    proxy: &Harness,
    number: u8,
    of_datagrams: bool,
    stranger: &str,
) -> Option<Armed> {
    let doc = protocol.doc();
    let which = usize::from(number).checked_sub(1)?;
    let action = &doc.actions[which % doc.actions.len()];
    let needed = action.params.iter().filter(|p| p.required);
    let mut args: Vec<(&str, Arg)> = needed.map(|p| (p.name, least(p.kind))).collect();
    if action.matched && of_datagrams {
        // Or the end would never come through.
        args.push(("every", Arg::Int(2)));
        if doc.matchers.iter().any(|m| m.name == "direction") {
            args.push(("direction", Arg::Str("both".into())));
        }
    }
    let mut choices = matchers(protocol);
    let others = (PREFIX, Arg::Str(stranger.into()));
    if doc.matchers.iter().any(|m| m.name == PREFIX) {
        choices.push(others.clone());
    }
    let matcher = (which / doc.actions.len())
        .checked_sub(1)
        .filter(|_| action.matched && !choices.is_empty())
        .map(|n| choices.swap_remove(n % choices.len()));
    let strange = matcher.as_ref() == Some(&others);
    let selective = matcher.and_then(|matcher| {
        let mut args = args.clone();
        args.push(matcher);
        // Not every action takes every matcher.
        proxy.try_arm(action.name, &args).ok()
    });
    let strange = strange && selective.is_some();
    let rule = selective.unwrap_or_else(|| proxy.arm(action.name, &args));
    if action.name == "drop" && !of_datagrams {
        lift_soon(proxy, &rule);
    }
    Some(Armed { rule, strange })
}

/// Lifts a rule when it has had the time to act: a black hole holds its session until then.
pub fn lift_soon(proxy: &Harness, rule: &ArmedRule) {
    let (rules, id) = (proxy.rules.clone(), rule.id);
    tokio::spawn(async move {
        tokio::time::sleep(PAUSE).await;
        rules.lift(id);
    });
}

/// The matcher of protocols that match bytes by how they begin.
const PREFIX: &str = "prefix";

/// The protocol's matchers that take any text, or a number, each with a value that all have, or the first.
fn matchers(protocol: &'static dyn Protocol) -> Vec<(&'static str, Arg)> {
    let value = |kind| match kind {
        Kind::Glob(_) => Some(Arg::Str("*".into())),
        Kind::Int(low, _) => Some(Arg::Int(low)),
        _ => None,
    };
    let all = protocol.doc().matchers.iter();
    all.filter_map(|m| Some((m.name, value(m.kind)?))).collect()
}

/// A value for a keyword that must be given.
fn least(kind: Kind) -> Arg {
    match kind {
        Kind::Int(low, _) => Arg::Int(low.max(1)),
        Kind::Bool => Arg::Bool(true),
        Kind::Duration => Arg::Str("1ms".into()),
        Kind::Rate => Arg::Str("100KB/s".into()),
        Kind::Choice(words) => Arg::Str(words[0].into()),
        Kind::List => Arg::Json(json!(["192.0.2.1"])),
        _ => Arg::Str("1".into()),
    }
}

/// Runs every file of a protocol's corpus, `fuzz/corpus/<protocol>/`, and says how many there are. A session in which nothing is said
/// runs under every rule besides, so that no target dies of a rule that its protocol refuses.
///
/// # Panics
/// As [`body`], or if the corpus cannot be read.
pub fn corpus(protocol: &'static dyn Protocol) -> usize {
    // And one for a matcher that selects nothing.
    let rules = protocol.doc().actions.len() * (2 + matchers(protocol).len());
    for rule in 0..=u8::try_from(rules).expect("a byte counts them") {
        body(protocol, &encode(rule, &[], &[]));
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let folder = folder.join(protocol.doc().name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut ran = 0;
    for file in files {
        let data = std::fs::read(file.expect("a file").path());
        body(protocol, &data.expect("a file"));
        ran += 1;
    }
    ran
}
