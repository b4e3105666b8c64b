//! The codec over all that can be written, and over bytes of any kind.

use faultbox_dns::answer::{self, Answer, Carrier, Reply};
use faultbox_dns::codec::{self, Edns, Framing, Query, Reader};
use faultbox_dns::records;
use proptest::collection::vec;
use proptest::prelude::*;

/// Labels of any bytes.
fn labels() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(vec(any::<u8>(), 1..20), 0..8)
}

fn wire(labels: &[Vec<u8>]) -> Vec<u8> {
    let mut out = vec![];
    for label in labels {
        out.push(label.len() as u8);
        out.extend(label);
    }
    out.push(0);
    out
}

fn message(query: &Query, qname: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    let edns = u16::from(query.edns.is_some());
    for word in [query.id, query.flags, 1, 0, 0, edns] {
        out.extend(word.to_be_bytes());
    }
    out.extend(qname);
    out.extend(query.kind.to_be_bytes());
    out.extend([0, 1]);
    if let Some(edns) = &query.edns {
        out.extend([0, 0, 41]);
        out.extend(edns.size.to_be_bytes());
        out.extend([0, 0, u8::from(edns.dnssec_ok) << 7, 0]);
        let cookie = edns.cookie.clone().unwrap_or_default();
        let options = if cookie.is_empty() {
            0
        } else {
            cookie.len() + 4
        };
        out.extend((options as u16).to_be_bytes());
        if options > 0 {
            out.extend([0, 10]);
            out.extend((cookie.len() as u16).to_be_bytes());
            out.extend(cookie);
        }
    }
    out
}

fn edns() -> impl Strategy<Value = Option<Edns>> {
    let cookie = proptest::option::of(vec(any::<u8>(), 16..=40));
    proptest::option::of((any::<u16>(), any::<bool>(), cookie).prop_map(
        |(size, dnssec_ok, cookie)| Edns {
            size,
            dnssec_ok,
            cookie,
        },
    ))
}

/// A query, and its name on the wire.
fn queries() -> impl Strategy<Value = (Query, Vec<u8>)> {
    (any::<u16>(), any::<u16>(), labels(), any::<u16>(), edns()).prop_map(
        |(id, flags, labels, kind, edns)| {
            let qname = wire(&labels);
            let mut reader = Reader {
                message: &qname,
                at: 0,
            };
            let name = reader.name().unwrap();
            let mut question = qname.clone();
            question.extend(kind.to_be_bytes());
            question.extend([0, 1]);
            let query = Query {
                id,
                flags: flags & !codec::QR,
                name,
                kind,
                question,
                edns,
            };
            (query, qname)
        },
    )
}

proptest! {
    #[test]
    fn names_survive_presentation(labels in labels()) {
        let bytes = wire(&labels);
        let mut reader = Reader { message: &bytes, at: 0 };
        let text = reader.name().unwrap();
        prop_assert_eq!(reader.at, bytes.len());
        let mut back = vec![];
        codec::put_name(&text, &mut back).unwrap();
        prop_assert_eq!(back, bytes);
    }

    #[test]
    fn queries_are_read_as_they_were_written((query, qname) in queries()) {
        let bytes = message(&query, &qname);
        prop_assert_eq!(codec::query(&bytes), Ok(Some(query)));
        for cut in 0..bytes.len() {
            prop_assert!(codec::query(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn nothing_panics_on_any_bytes(bytes in vec(any::<u8>(), 0..200)) {
        let _ = codec::query(&bytes);
        let mut reader = Reader { message: &bytes, at: 0 };
        while records::read(&mut reader).is_ok() {}
        let text = String::from_utf8_lossy(&bytes);
        let mut out = vec![];
        let _ = codec::put_name(&text, &mut out);
        for kind in [1, 2, 5, 6, 12, 15, 16, 28, 33, 257, 65280] {
            let _ = records::encode(kind, &text);
        }
    }

    /// A reply is a message whose every part is where its header says, with the question to the letter.
    #[test]
    fn replies_are_well_formed(
        (query, _) in queries(),
        code in 0..24u16,
        answers in vec((vec(any::<u8>(), 0..300), any::<u32>(), any::<bool>()), 0..8),
        text in proptest::option::of("[a-z ]{0,40}"),
        stream in any::<bool>(),
    ) {
        let reply = Reply {
            code,
            answers: answers
                .iter()
                .map(|(data, ttl, own)| Answer {
                    owner: own.then(|| wire(&[b"x".to_vec()])),
                    kind: query.kind,
                    ttl: *ttl,
                    data: data.clone(),
                })
                .collect(),
            message: text,
        };
        let carrier = if stream { Carrier::Stream } else { Carrier::Datagram };
        let bytes = answer::reply(&query, &reply, carrier);
        let limit = match (&query.edns, stream) {
            (_, true) => 65_535,
            (None, false) => 512,
            (Some(edns), false) => usize::from(edns.size).max(512),
        };
        let flags = u16::from_be_bytes([bytes[2], bytes[3]]);
        let cut = flags & codec::TC != 0;
        // The question and EDNS alone may be larger than a plain datagram takes; a name has 255 bytes at most.
        prop_assert!(bytes.len() <= limit || cut, "{} of {limit}", bytes.len());
        prop_assert_eq!(&bytes[..2], query.id.to_be_bytes());
        prop_assert!(flags & codec::QR != 0);
        let question = codec::HEADER..codec::HEADER + query.question.len();
        prop_assert_eq!(&bytes[question.clone()], &query.question[..]);
        let mut reader = Reader { message: &bytes, at: question.end };
        let count = usize::from(u16::from_be_bytes([bytes[6], bytes[7]]));
        prop_assert_eq!(count, if cut { 0 } else { answers.len() });
        let mut seen = flags & codec::RCODE;
        // The data is random, so only its frame is read.
        for _ in 0..count + usize::from(bytes[11]) {
            reader.name().unwrap();
            let kind = reader.u16().unwrap();
            reader.u16().unwrap();
            let ttl = reader.u32().unwrap();
            let length = reader.u16().unwrap();
            reader.take(usize::from(length)).unwrap();
            if kind == codec::OPT && reader.at == bytes.len() {
                seen |= ((ttl >> 24) as u16) << 4;
            }
        }
        prop_assert_eq!(reader.at, bytes.len());
        let told = if query.edns.is_none() && code > 15 { answer::SERVFAIL } else { code };
        prop_assert_eq!(seen, if cut { 0 } else { told });
    }

    /// However a stream is cut, the framing finds the same boundaries.
    #[test]
    fn framing_does_not_depend_on_chunks(
        lengths in vec(0..400usize, 1..10),
        cuts in vec(1..50usize, 1..200),
    ) {
        let stream: Vec<u8> = lengths
            .iter()
            .flat_map(|n| codec::framed(&vec![7; *n]))
            .collect();
        let mut framing = Framing::default();
        let (mut at, mut boundaries) = (0, vec![]);
        let mut cuts = cuts.iter().cycle();
        while at < stream.len() {
            let end = (at + cuts.next().unwrap()).min(stream.len());
            while at < end {
                at += framing.advance(&stream[at..end], true);
                if framing.at_boundary() {
                    boundaries.push(at);
                }
            }
        }
        let mut expected = vec![];
        for n in &lengths {
            expected.push(expected.last().unwrap_or(&0) + n + 2);
        }
        prop_assert_eq!(boundaries, expected);
    }
}

#[test]
fn pointers_lead_back_or_nowhere() {
    // "a.b" at 0, then "c" with a pointer to "b".
    let message = b"\x01a\x01b\x00\x01c\xc0\x02rest";
    let mut reader = Reader { message, at: 5 };
    assert_eq!(reader.name().unwrap(), "c.b");
    assert_eq!(&message[reader.at..], b"rest");
    for loops in [&b"\xc0\x00"[..], b"\x01a\xc0\x00", b"\xc0\x04\0\0\xc0\x00"] {
        let mut reader = Reader {
            message: loops,
            at: 0,
        };
        assert!(reader.name().is_err(), "{loops:?}");
    }
    // Two that point at each other.
    let mut reader = Reader {
        message: b"\x01a\xc0\x04\xc0\x02",
        at: 4,
    };
    assert!(reader.name().is_err());
}

#[test]
fn presentation_is_that_of_master_files() {
    let mut reader = Reader {
        message: b"\x05a.b\\\x00\x03COM\x00",
        at: 0,
    };
    assert_eq!(reader.name().unwrap(), r"a\.b\\\000.COM");
    for bad in ["", "a..b", ".a", r"a\", r"a\25", r"a\256", &"a".repeat(64)] {
        assert!(codec::put_name(bad, &mut vec![]).is_err(), "{bad:?}");
    }
    assert!(codec::put_name(&["abcdefg"; 32].join("."), &mut vec![]).is_err());
    let mut out = vec![];
    codec::put_name("a.b.", &mut out).unwrap();
    assert_eq!(out, b"\x01a\x01b\x00");
}

#[test]
fn records_survive_text() {
    for (kind, text) in [
        ("A", "192.0.2.1"),
        ("AAAA", "2001:db8::1"),
        ("CNAME", "www.example.com"),
        ("MX", "10 mail.example.com"),
        ("SRV", "0 5 5060 sip.example.com"),
        (
            "SOA",
            "ns.example.com root.example.com 1 7200 900 1209600 60",
        ),
        ("TXT", "v=spf1 -all"),
        ("CAA", "0 issue \"ca.example\""),
    ] {
        let number = records::type_number(kind).unwrap();
        let data = records::encode(number, text).unwrap();
        let mut record = vec![0];
        record.extend(number.to_be_bytes());
        record.extend([0, 1, 0, 0, 0, 9]);
        record.extend((data.len() as u16).to_be_bytes());
        record.extend(data);
        let mut reader = Reader {
            message: &record,
            at: 0,
        };
        let read = records::read(&mut reader).unwrap();
        assert_eq!((read.data.as_str(), read.ttl), (text, 9));
    }
    for (kind, text) in [
        ("A", "::1"),
        ("MX", "mail"),
        ("MX", "70000 a"),
        ("HTTPS", "x"),
    ] {
        let number = records::type_number(kind).unwrap();
        assert!(records::encode(number, text).is_err(), "{kind} {text}");
    }
    assert_eq!(records::type_number("TYPE65280"), Some(65280));
    assert_eq!(records::type_name(65280), "TYPE65280");
}
