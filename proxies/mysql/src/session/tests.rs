use super::*;
use crate::codec::{self, com};
use bytes::BytesMut;
use faultbox_sql::Cache;

/// A message with this sequence number.
fn packet(seq: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    codec::packet(&mut out, &mut { seq }, payload);
    out.to_vec()
}

fn command(code: u8, argument: &[u8]) -> Vec<u8> {
    packet(0, &[&[code][..], argument].concat())
}

const OK: &[u8] = &[0, 0, 0, 2, 0, 0, 0];

struct Talk {
    session: Session,
    frontend: Frontend,
    backend: Backend,
    cache: Cache,
}

impl Talk {
    /// A session that has just logged in.
    fn new(capabilities: u64) -> Talk {
        Talk {
            session: Session {
                phase: Phase::Commands,
                capabilities,
                ..Session::default()
            },
            frontend: Frontend::default(),
            backend: Backend::default(),
            cache: Cache::default(),
        }
    }

    /// What goes to the server when the client says this, one byte at a time, and every request gets this verdict.
    fn ask(
        &mut self,
        bytes: &[u8],
        mut verdict: impl FnMut(&Request) -> Option<Verdict>,
    ) -> Vec<u8> {
        let (mut sent, mut held) = (vec![], vec![]);
        for byte in bytes {
            held.push(*byte);
            loop {
                match self.frontend.next(&held, &mut self.session, true).unwrap() {
                    Step::More => break,
                    Step::Pass(n) | Step::StartTls(n) => sent.extend(held.drain(..n)),
                    Step::Discard(n) => drop(held.drain(..n)),
                    Step::Instead(bytes) => sent.extend(bytes),
                    Step::Request(request, n) => {
                        let verdict = verdict(&request).unwrap_or_default();
                        let decided = self.frontend.decide(
                            &request,
                            verdict,
                            None,
                            &mut self.session,
                            &self.cache,
                        );
                        let taken: Vec<u8> = held.drain(..n).collect();
                        if !decided {
                            sent.extend(taken);
                        }
                    }
                    Step::Raw => {
                        sent.append(&mut held);
                        break;
                    }
                }
            }
        }
        sent
    }

    /// What the client gets when the server says this.
    fn answer(&mut self, bytes: &[u8]) -> Vec<u8> {
        let (mut got, mut held) = (vec![], vec![]);
        for byte in bytes {
            held.push(*byte);
            loop {
                match self.backend.next(&held, &mut self.session).unwrap() {
                    Answer::More => break,
                    Answer::Pass(n) | Answer::Affected(n, ..) => got.extend(held.drain(..n)),
                    Answer::Replace(n, bytes) => {
                        held.drain(..n);
                        got.extend(bytes);
                    }
                    Answer::Last(bytes) => {
                        got.extend(bytes);
                        return got;
                    }
                    Answer::Raw => {
                        got.append(&mut held);
                        break;
                    }
                }
            }
        }
        // The last answer leaves the queue.
        let _ = self.backend.next(&[], &mut self.session);
        got
    }

    fn prepare(&mut self, sql: &str, params: u16) {
        self.ask(&command(com::STMT_PREPARE, sql.as_bytes()), |_| None);
        let mut ok = vec![0, 5, 0, 0, 0, 0, 0];
        ok.extend(params.to_le_bytes());
        ok.extend([0, 0, 0]);
        let mut bytes = packet(1, &ok);
        for i in 0..params {
            bytes.extend(packet(
                2 + i as u8,
                b"\x03def\0\0\0\x01?\0\x0c\x3f\0\0\0\0\0\xfd\0\0\0\0\0",
            ));
        }
        assert_eq!(self.answer(&bytes), bytes);
        assert!(self.session.queue.is_empty(), "{:?}", self.session.queue);
    }
}

fn deny(code: u16) -> Option<Verdict> {
    Some(Verdict::Deny(Arc::new(Error::of_code(code))))
}

fn texts(mut bytes: &[u8]) -> Vec<(u8, String)> {
    let mut out = vec![];
    while let Some(header) = codec::header(bytes) {
        let payload = &bytes[4..4 + header.len];
        out.push((
            payload[0],
            String::from_utf8_lossy(&payload[1..]).into_owned(),
        ));
        bytes = &bytes[4 + header.len..];
    }
    out
}

#[test]
fn a_denied_query_becomes_a_signal_and_its_answer_the_error() {
    let mut talk = Talk::new(0);
    let sent = talk.ask(&command(com::QUERY, b"INSERT INTO t VALUES (1)"), |_| {
        deny(1062)
    });
    let sent = texts(&sent);
    assert_eq!(sent.len(), 1);
    assert!(
        sent[0]
            .1
            .contains("SIGNAL SQLSTATE '23000' SET MYSQL_ERRNO = 1062"),
        "{sent:?}"
    );
    let got = talk.answer(&packet(1, b"\xff\x26\x04#23000x"));
    assert_eq!(codec::header(&got).unwrap().seq, 1);
    let error = codec::err(&got[4..]).unwrap();
    assert_eq!((error.code, error.sqlstate.as_str()), (1062, "23000"));
    assert_eq!((talk.session.asked, talk.session.done), (1, 1));
}

#[test]
fn a_deadlock_rolls_back_first() {
    let mut talk = Talk::new(0);
    let sent = texts(&talk.ask(&command(com::QUERY, b"UPDATE t SET a = 1"), |_| deny(1213)));
    assert_eq!(sent[0].1, "ROLLBACK AND NO CHAIN NO RELEASE");
    assert!(sent[1].1.contains("MYSQL_ERRNO = 1213"));
    let answers = [packet(1, OK), packet(1, b"\xff\xbd\x04#40001x")].concat();
    let got = talk.answer(&answers);
    assert_eq!(codec::err(&got[4..]).unwrap().code, 1213);
    assert_eq!(got.len(), 4 + codec::header(&got).unwrap().len);
}

#[test]
fn types_that_the_server_has_not_seen_are_put_in_later() {
    let mut talk = Talk::new(caps::DEPRECATE_EOF);
    talk.prepare("INSERT INTO t VALUES (?)", 1);
    let bound = command(
        com::STMT_EXECUTE,
        b"\x05\0\0\0\0\x01\0\0\0\0\x01\xfd\0\x01a",
    );
    let again = command(com::STMT_EXECUTE, b"\x05\0\0\0\0\x01\0\0\0\0\0\x01b");
    let sent = texts(&talk.ask(&bound, |_| deny(1205)));
    assert!(sent[0].1.contains("SIGNAL"));
    talk.answer(&packet(1, b"\xff\xb5\x04#HY000x"));
    let sent = talk.ask(&again, |_| None);
    assert_eq!(
        sent,
        command(
            com::STMT_EXECUTE,
            b"\x05\0\0\0\0\x01\0\0\0\0\x01\xfd\0\x01b"
        )
    );
    talk.answer(&packet(1, OK));
    // Once it has, nothing is put in.
    assert_eq!(talk.ask(&again, |_| None), again);
    assert_eq!(talk.answer(&packet(1, OK)), packet(1, OK));
}

#[test]
fn values_that_came_ahead_of_a_denied_execution_are_forgotten() {
    let mut talk = Talk::new(caps::DEPRECATE_EOF);
    talk.prepare("INSERT INTO t VALUES (?)", 1);
    let long = command(com::STMT_SEND_LONG_DATA, b"\x05\0\0\0\0\0long");
    assert_eq!(talk.ask(&long, |_| None), long);
    let execute = command(com::STMT_EXECUTE, b"\x05\0\0\0\0\x01\0\0\0\0\x01\xfd\0");
    let sent = talk.ask(&execute, |_| deny(1205));
    assert_eq!(sent[..9], command(com::STMT_RESET, b"\x05\0\0\0"));
    let got = talk.answer(&[packet(1, OK), packet(1, b"\xff\xb5\x04#HY000x")].concat());
    assert_eq!(codec::err(&got[4..]).unwrap().code, 1205);
    assert!(talk.session.queue.is_empty());
}

#[test]
fn the_queue_empties_with_every_kind_of_answer() {
    let column = b"\x03def\0\0\0\x01a\0\x0c\x3f\0\0\0\0\0\x03\0\0\0\0\0";
    let eof = |seq: u8, status: u8| packet(seq, &[0xfe, 0, 0, status, 0]);
    let rows = |status: u8| {
        [
            packet(1, &[1]),
            packet(2, column),
            eof(3, 2),
            packet(4, b"\x017"),
            eof(5, status),
        ]
        .concat()
    };
    for (asked, answers) in [
        (command(com::QUERY, b"SELECT 1"), rows(2)),
        (
            command(com::QUERY, b"CALL p()"),
            [rows(10), packet(6, OK)].concat(),
        ),
        (command(com::QUERY, b"x"), packet(1, b"\xff\x28\x04#42000x")),
        // A row that ends with an error.
        (
            command(com::QUERY, b"SELECT 1"),
            [
                &rows(2)[..rows(2).len() - 9],
                &packet(5, b"\xff\x25\x05#70100x"),
            ]
            .concat(),
        ),
        (command(0x0e, b""), packet(1, OK)),
        (command(0x09, b""), packet(1, b"Uptime: 5")),
        (
            command(com::FIELD_LIST, b"t\0"),
            [packet(1, column), eof(2, 2)].concat(),
        ),
        (
            command(com::STMT_FETCH, b"\x05\0\0\0\x01\0\0\0"),
            [packet(1, b"\0\0\x07\0\0\0"), eof(2, 130)].concat(),
        ),
        // A cursor: no rows yet.
        (
            command(com::STMT_EXECUTE, b"\x05\0\0\0\x01\x01\0\0\0"),
            [packet(1, &[1]), packet(2, column), eof(3, 66)].concat(),
        ),
        // A report of progress.
        (
            command(com::QUERY, b"ALTER TABLE t FORCE"),
            [
                packet(1, b"\xff\xff\xff\x01\x01\x01\0\0\0\0"),
                packet(2, OK),
            ]
            .concat(),
        ),
        (
            command(com::CHANGE_USER, b"bob\0\0shop\0"),
            [
                packet(1, b"\xfemysql_native_password\0abc\0"),
                packet(3, OK),
            ]
            .concat(),
        ),
    ] {
        let mut talk = Talk::new(0);
        assert_eq!(talk.ask(&asked, |_| None), asked);
        assert_eq!(talk.session.queue.len(), 1, "{asked:?}");
        assert_eq!(talk.answer(&answers), answers);
        assert!(
            talk.session.queue.is_empty(),
            "{asked:?}: {:?}",
            talk.session.queue
        );
    }
}

#[test]
fn a_file_is_no_commands() {
    let mut talk = Talk::new(0);
    talk.ask(
        &command(com::QUERY, b"LOAD DATA LOCAL INFILE 'x' INTO TABLE t"),
        |_| None,
    );
    talk.answer(&packet(1, b"\xfbx"));
    let file = [packet(2, b"\x03DROP TABLE t"), packet(3, b"")].concat();
    let sent = talk.ask(&file, |_| panic!("a request in a file"));
    assert_eq!(sent, file);
    talk.answer(&packet(4, OK));
    assert!(talk.session.queue.is_empty());
    let next = command(com::QUERY, b"SELECT 1");
    let mut seen = 0;
    talk.ask(&next, |_| {
        seen += 1;
        None
    });
    assert_eq!(seen, 1);
}

#[test]
fn long_requests_are_answered_with_the_number_that_follows_theirs() {
    let mut talk = Talk::new(0);
    let mut sql = b"INSERT INTO t VALUES ('".to_vec();
    sql.resize(codec::MAX_PAYLOAD + 10, b'x');
    let message = command(com::QUERY, &sql);
    let mut sent = vec![];
    let mut at = 0;
    // Not byte by byte: there are 16 million of them.
    while at < message.len() || sent.is_empty() {
        let end = message.len().min(at + (2 << 20));
        match talk
            .frontend
            .next(&message[at..end], &mut talk.session, true)
            .unwrap()
        {
            Step::Request(request, n) => {
                let verdict = deny(1153).unwrap();
                let decided =
                    talk.frontend
                        .decide(&request, verdict, None, &mut talk.session, &talk.cache);
                assert!(decided);
                at += n;
            }
            Step::Discard(n) => at += n,
            Step::Instead(bytes) => sent.extend(bytes),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(texts(&sent).len(), 1);
    let got = talk.answer(&packet(1, b"\xff\x81\x04#08S01x"));
    assert_eq!(codec::header(&got).unwrap().seq, 2);
}

#[test]
fn the_database_follows_the_session() {
    let mut talk = Talk::new(0);
    talk.ask(&command(com::QUERY, b"USE `shop`"), |_| None);
    talk.answer(&packet(1, OK));
    assert_eq!(talk.session.facts.database, "shop");
    talk.ask(&command(com::INIT_DB, b"other"), |_| None);
    talk.answer(&packet(1, b"\xff\x19\x04#42000x"));
    assert_eq!(talk.session.facts.database, "shop");
    talk.ask(&command(com::INIT_DB, b"other"), |_| None);
    talk.answer(&packet(1, OK));
    assert_eq!(talk.session.facts.database, "other");
    talk.ask(&command(com::CHANGE_USER, b"bob\0\0third\0"), |_| None);
    talk.answer(&packet(1, OK));
    assert_eq!(
        (
            talk.session.facts.user.as_str(),
            talk.session.facts.database.as_str()
        ),
        ("bob", "third")
    );
}
