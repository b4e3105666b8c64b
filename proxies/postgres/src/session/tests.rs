//! Conversations of any shape, in any chunking, through both walks.

use std::sync::Arc;

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use faultbox_sql::Cache;

use crate::codec::{self, HEAD, Malformed};

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    codec::message(&mut out, tag, |out| out.extend_from_slice(body));
    out.to_vec()
}

/// What both sides of one exchange say, and whether the client waits for the answer before it goes on.
type Exchange = (Vec<u8>, Vec<u8>);

fn start() -> Exchange {
    let body = b"\0\x03\0\0user\0ann\0\0";
    let client = [&(body.len() as u32 + 4).to_be_bytes()[..], body].concat();
    let server = [
        message(b'R', &[0; 4]),
        message(b'S', b"application_name\0psql\0"),
        message(b'K', &[1, 2, 3, 4, 5, 6, 7, 8]),
        message(b'Z', b"I"),
    ];
    (client, server.concat())
}

fn exchanges() -> impl Strategy<Value = Vec<Exchange>> {
    let row = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(|v| message(b'D', &v));
    let rows = || proptest::collection::vec(row(), 0..4).prop_map(|rows| rows.concat());
    let any_time = || {
        prop_oneof![
            Just(vec![]),
            Just(message(b'A', b"\0\0\0\x01news\0hello\0")),
            Just(message(b'N', b"SNOTICE\0\0")),
            Just(message(b'S', b"TimeZone\0UTC\0")),
        ]
    };
    let simple =
        (".{0,20}", rows(), any_time(), any::<bool>()).prop_map(|(sql, rows, any_time, fails)| {
            let end = if fails {
                message(b'E', b"SERROR\0C22012\0\0")
            } else {
                message(b'C', b"SELECT 1\0")
            };
            let sql = sql.replace('\0', "");
            (
                message(b'Q', format!("{sql}\0").as_bytes()),
                [
                    any_time,
                    message(b'T', b"\0\0"),
                    rows,
                    end,
                    message(b'Z', b"I"),
                ]
                .concat(),
            )
        });
    // A batch of the extended protocol that fails at the message `fails`, if it has so many.
    let extended =
        ("[a-z]{0,3}", rows(), any_time(), 0..8usize).prop_map(|(name, rows, any_time, fails)| {
            let z = |s: &str| format!("{s}\0").into_bytes();
            let asked = [
                message(b'P', &[z(&name), z("SELECT 1"), vec![0, 0]].concat()),
                message(b'D', &[b"S".to_vec(), z(&name)].concat()),
                message(b'B', &[z("p"), z(&name), vec![0; 6]].concat()),
                message(b'E', &[z("p"), vec![0; 4]].concat()),
                message(b'C', &[b"P".to_vec(), z("p")].concat()),
            ];
            let answers = [
                message(b'1', b""),
                [message(b't', b"\0\0"), message(b'T', b"\0\0")].concat(),
                message(b'2', b""),
                [any_time, rows, message(b's', b"")].concat(),
                message(b'3', b""),
            ];
            let mut server: Vec<u8> = answers[..fails.min(5)].concat();
            if fails < 5 {
                server.extend(message(b'E', b"SERROR\0C22012\0\0"));
            }
            server.extend(message(b'Z', b"I"));
            (
                [asked.concat(), message(b'H', b""), message(b'S', b"")].concat(),
                server,
            )
        });
    let copy_in = proptest::collection::vec(any::<u8>(), 0..40).prop_map(|data| {
        (
            [
                message(b'Q', b"COPY t FROM STDIN\0"),
                message(b'd', &data),
                message(b'c', b""),
            ]
            .concat(),
            [
                message(b'G', &[0; 3]),
                message(b'C', b"COPY 1\0"),
                message(b'Z', b"I"),
            ]
            .concat(),
        )
    });
    let copy_out = proptest::collection::vec(any::<u8>(), 0..40).prop_map(|data| {
        let server = [
            message(b'H', &[0; 3]),
            message(b'd', &data),
            message(b'c', b""),
            message(b'C', b"COPY 1\0"),
            message(b'Z', b"T"),
        ];
        (message(b'Q', b"COPY t TO STDOUT\0"), server.concat())
    });
    // libpq sends the Sync with the Execute, before it knows that this is a COPY; the server ignores that one.
    let copy_extended = Just((
        [
            message(b'P', b"\0COPY t FROM STDIN\0\0\0"),
            message(b'B', b"\0\0\0\0\0\0\0\0"),
            message(b'E', b"\0\0\0\0\0"),
            message(b'S', b""),
            message(b'd', b"1"),
            message(b'c', b""),
            message(b'S', b""),
        ]
        .concat(),
        [
            message(b'1', b""),
            message(b'2', b""),
            message(b'G', &[0; 3]),
            message(b'C', b"COPY 1\0"),
            message(b'Z', b"I"),
        ]
        .concat(),
    ));
    let function = Just((
        message(b'F', &[0; 10]),
        [message(b'V', &[255; 4]), message(b'Z', b"I")].concat(),
    ));
    let one = prop_oneof![simple, extended, copy_in, copy_out, copy_extended, function];
    proptest::collection::vec(one, 0..6).prop_map(|rest| [vec![start()], rest].concat())
}

/// Both walks, side by side; every request passes.
#[derive(Default)]
struct Both {
    frontend: Frontend,
    backend: Backend,
    session: Session,
    cache: Cache,
    inboxes: (Vec<u8>, Vec<u8>),
    out: (Vec<u8>, Vec<u8>),
}

impl Both {
    fn client(&mut self, bytes: &[u8], armed: bool) -> Result<(), Malformed> {
        let (inbox, out) = (&mut self.inboxes.0, &mut self.out.0);
        inbox.extend(bytes);
        loop {
            let n = match self.frontend.next(inbox, &mut self.session, armed)? {
                Step::More => return Ok(()),
                Step::Raw => inbox.len().max(1),
                Step::Pass(n) | Step::Discard(n) | Step::Encryption(n) => n,
                Step::Request(request, n) => {
                    let instead = self.frontend.decide(
                        request,
                        Verdict::Pass,
                        None,
                        &mut self.session,
                        &self.cache,
                    );
                    assert_eq!(instead, None);
                    n
                }
            };
            if inbox.is_empty() {
                return Ok(());
            }
            out.extend(inbox.drain(..n.min(inbox.len())));
        }
    }

    fn server(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let (inbox, out) = (&mut self.inboxes.1, &mut self.out.1);
        inbox.extend(bytes);
        loop {
            let n = match self.backend.next(inbox, &mut self.session)? {
                Reply::More => return Ok(()),
                Reply::Raw => inbox.len(),
                Reply::Pass(n) => n,
                other => panic!("{other:?}"),
            };
            if inbox.is_empty() {
                return Ok(());
            }
            out.extend(inbox.drain(..n));
        }
    }
}

fn chunks<'a>(mut bytes: &'a [u8], sizes: &'a [usize]) -> Vec<&'a [u8]> {
    let mut out = vec![];
    for size in sizes.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (now, later) = bytes.split_at((*size).min(bytes.len()));
        out.push(now);
        bytes = later;
    }
    out
}

proptest! {
    /// Any valid conversation in any chunking, with the client far ahead of the server or not.
    #[test]
    fn conversations_pass_unchanged(
        exchanges in exchanges(),
        sizes in proptest::collection::vec(1..30usize, 1..8),
        ahead in any::<bool>(),
        armed in any::<bool>(),
    ) {
        let mut both = Both::default();
        if ahead {
            // Everything that the client says before the server says anything; start-up and COPY apart, it may.
            for (client, _) in &exchanges {
                for chunk in chunks(client, &sizes) {
                    both.client(chunk, armed).unwrap();
                }
            }
            for (_, server) in &exchanges {
                for chunk in chunks(server, &sizes) {
                    both.server(chunk).unwrap();
                }
            }
        } else {
            for (client, server) in &exchanges {
                for chunk in chunks(client, &sizes) {
                    both.client(chunk, armed).unwrap();
                }
                for chunk in chunks(server, &sizes) {
                    both.server(chunk).unwrap();
                }
            }
        }
        let said = exchanges.iter().map(|e| e.0.clone()).collect::<Vec<_>>().concat();
        let answered = exchanges.iter().map(|e| e.1.clone()).collect::<Vec<_>>().concat();
        prop_assert_eq!(both.out, (said, answered));
        prop_assert!(both.session.is_idle());
    }

    /// Bytes that mean nothing never make either walk panic or take more than there is.
    #[test]
    fn no_bytes_make_it_panic(begun in any::<bool>(), client in proptest::collection::vec(any::<u8>(), 0..60), server in proptest::collection::vec(any::<u8>(), 0..60)) {
        let mut both = Both::default();
        if begun {
            let (hello, welcome) = start();
            both.client(&hello, true).unwrap();
            both.server(&welcome).unwrap();
        }
        let _ = both.client(&client, true);
        let _ = both.server(&server);
    }
}

#[test]
fn an_error_takes_its_place_in_a_pipeline() {
    let mut both = Both::default();
    let (hello, welcome) = start();
    both.client(&hello, true).unwrap();
    both.server(&welcome).unwrap();
    both.client(&message(b'P', b"\0INSERT INTO orders\0\0\0"), true)
        .unwrap();
    both.client(&message(b'B', b"\0\0\0\0\0\0\0\0"), true)
        .unwrap();
    let execute = message(b'E', b"\0\0\0\0\0");
    let Ok(Step::Request(request, n)) = both.frontend.next(&execute, &mut both.session, true)
    else {
        panic!("an Execute is a request");
    };
    assert_eq!(
        (n, request.sql().unwrap().text().as_ref()),
        (execute.len(), "INSERT INTO orders")
    );
    let error = Arc::new(Error::new("ERROR", "53100", "disk full", None, None));
    let replaced = both
        .frontend
        .decide(
            request,
            Verdict::Deny(error.clone()),
            None,
            &mut both.session,
            &both.cache,
        )
        .unwrap();
    assert!(replaced.starts_with(b"E") && !replaced.windows(6).any(|w| w == b"orders"));
    // Skipped by the server, so nothing is expected for it; the next batch is another matter.
    both.client(&execute, true).unwrap();
    both.client(&message(b'S', b""), true).unwrap();
    both.client(&message(b'Q', b"SELECT 1\0"), true).unwrap();
    let wants: Vec<_> = both
        .session
        .queue
        .iter()
        .map(|e| format!("{:?}", e.want))
        .collect();
    assert_eq!(wants, ["Parse", "Bind", "Execute", "Sync", "Query"]);
    both.server(&[message(b'1', b""), message(b'2', b"")].concat())
        .unwrap();
    let servers = message(b'E', b"SERROR\0C34000\0\0");
    match both.backend.next(&servers, &mut both.session) {
        Ok(Reply::Replace(n, bytes)) => {
            assert_eq!((n, bytes), (servers.len(), error.message.clone()))
        }
        other => panic!("{other:?}"),
    }
    both.server(
        &[
            message(b'Z', b"I"),
            message(b'C', b"SELECT 1\0"),
            message(b'Z', b"I"),
        ]
        .concat(),
    )
    .unwrap();
    assert!(both.session.is_idle());
}

#[test]
fn the_rest_of_a_denied_request_never_reaches_the_server() {
    let mut both = Both::default();
    let (hello, welcome) = start();
    both.client(&hello, true).unwrap();
    both.server(&welcome).unwrap();
    let long = message(b'Q', &[b' '; 2 * HEAD]);
    let (beginning, rest) = long.split_at(HEAD + 5);
    let Ok(Step::Request(request, n)) = both.frontend.next(beginning, &mut both.session, true)
    else {
        panic!("a Query is a request");
    };
    assert_eq!(n, beginning.len());
    let error = Arc::new(Error::new("ERROR", "53100", "disk full", None, None));
    let verdict = Verdict::Deny(error);
    let cache = Cache::default();
    both.frontend
        .decide(request, verdict, None, &mut both.session, &cache)
        .unwrap();
    // The server says something that is not understood while the rest of the statement is still coming.
    both.session.raw = Some(Raw::Degraded);
    match both.frontend.next(rest, &mut both.session, true) {
        Ok(Step::Discard(n)) => assert_eq!(n, rest.len()),
        other => panic!("{other:?}"),
    }
    let after = both.frontend.next(b"x", &mut both.session, true);
    assert!(matches!(after, Ok(Step::Raw)), "{after:?}");
}
