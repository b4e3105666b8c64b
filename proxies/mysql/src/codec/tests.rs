use super::*;
use bytes::BytesMut;
use proptest::prelude::*;

/// What a MariaDB 10.11 says first.
fn mariadb() -> Vec<u8> {
    let mut out = b"\x0a5.5.5-10.11.19-MariaDB\0".to_vec();
    out.extend(7u32.to_le_bytes());
    out.extend(b"12345678\0");
    out.extend([0xfe, 0xf7, 45, 2, 0, 0xff, 0x81, 21]);
    out.extend([0; 6]);
    out.extend([0x1d, 0, 0, 0]);
    out.extend(b"abcdefghijkl\0mysql_native_password\0");
    out
}

#[test]
fn greetings() {
    let greeting = greeting(&mariadb()).unwrap();
    assert_eq!(greeting.version, "5.5.5-10.11.19-MariaDB");
    assert_eq!((greeting.thread, greeting.status), (7, 2));
    assert_eq!(greeting.scramble, b"12345678abcdefghijkl");
    assert_eq!(greeting.plugin, "mysql_native_password");
    assert_ne!(greeting.capabilities & caps::MARIADB_CACHE_METADATA, 0);
    assert_eq!(greeting.capabilities & caps::MYSQL, 0);
    for cut in 0..mariadb().len() {
        let _ = super::greeting(&mariadb()[..cut]);
    }
    let e = super::greeting(b"\x09old").unwrap_err();
    assert!(e.0.contains("protocol version 9"), "{e:?}");
}

#[test]
fn logins_come_back() {
    let login = Login {
        capabilities: caps::MYSQL
            | caps::PROTOCOL_41
            | caps::SECURE_CONNECTION
            | caps::PLUGIN_AUTH_LENENC
            | caps::CONNECT_WITH_DB,
        user: "ann".into(),
        database: "shop".into(),
    };
    let mut out = BytesMut::new();
    put_login(&mut out, &login, "mysql_native_password", &[1; 20]);
    assert_eq!(hello(&out), Ok(Hello::Session(login)));
    let mut ssl = (caps::PROTOCOL_41 | caps::SSL).to_le_bytes()[..4].to_vec();
    ssl.resize(32, 0);
    assert_eq!(hello(&ssl), Ok(Hello::Ssl));
    assert!(hello(&[0; 32]).is_err());
    let changed = change_user(b"\x11bob\0\x02xyother\0", caps::SECURE_CONNECTION).unwrap();
    assert_eq!(
        (changed.user.as_str(), changed.database.as_str()),
        ("bob", "other")
    );
}

#[test]
fn attributes_of_a_query_are_passed_over() {
    assert_eq!(query(b"\x03SELECT 1", 0), Ok(&b"SELECT 1"[..]));
    let capability = caps::QUERY_ATTRIBUTES;
    assert_eq!(
        query(b"\x03\0\x01SELECT 1", capability),
        Ok(&b"SELECT 1"[..])
    );
    // Two attributes, the second NULL: one byte of NULLs, types with names, one value.
    let attributes = b"\x03\x02\x01\x02\x01\xfe\0\x01a\x08\0\x01b\x03xyzSELECT 1";
    assert_eq!(query(attributes, capability), Ok(&b"SELECT 1"[..]));
}

#[test]
fn executions_show_where_their_types_stand() {
    // Two parameters, bound for the first time.
    let bound = b"\x17\x05\0\0\0\0\x01\0\0\0\0\x01\x08\0\xfe\0rest";
    let first = execute(bound, 2, 0).unwrap().unwrap();
    assert_eq!((first.id, first.types, first.flag), (5, 12..16, (11, 1)));
    let again = execute(b"\x17\x05\0\0\0\0\x01\0\0\0\0\0rest", 2, 0)
        .unwrap()
        .unwrap();
    assert_eq!(again.types, 12..12);
    assert_eq!(execute(b"\x17\x05\0\0\0\0\x01\0\0\0", 0, 0), Ok(None));
    let bulk = bulk_execute(b"\xfa\x05\0\0\0\x80\0\x08\0rest", 1).unwrap();
    assert_eq!((bulk.types, bulk.flag), (7..9, (5, 128)));
}

#[test]
fn session_tracking_tells_the_schema() {
    let mut payload = vec![0, 0, 0];
    payload.extend((status::STATE_CHANGED | 2).to_le_bytes());
    payload.extend([0, 0]);
    payload.extend(b"\0\x0b\x00\x02\x01x\x01\x05\x04shop");
    let done = ok(&payload, caps::SESSION_TRACK).unwrap();
    assert_eq!(done.schema.as_deref(), Some("shop"));
    assert_eq!(ok(&payload, 0).unwrap().schema, None);
}

#[test]
fn long_messages_take_several_packets() {
    for len in [MAX_PAYLOAD - 1, MAX_PAYLOAD, MAX_PAYLOAD + 1] {
        let mut out = BytesMut::new();
        let mut seq = 255;
        packet(&mut out, &mut seq, &vec![7; len]);
        let first = header(&out).unwrap();
        assert_eq!((first.len, first.seq), (len.min(MAX_PAYLOAD), 255));
        assert_eq!(seq, if len < MAX_PAYLOAD { 0 } else { 1 });
        assert_eq!(out.len(), len + if len < MAX_PAYLOAD { 4 } else { 8 });
    }
}

#[test]
fn errors_with_and_without_sqlstate() {
    let e = err(b"\xff\x15\x04#28000Access denied").unwrap();
    assert_eq!(
        (e.code, e.sqlstate.as_str(), e.message.as_str()),
        (1045, "28000", "Access denied")
    );
    let e = err(b"\xff\x10\x04Too many connections").unwrap();
    assert_eq!(
        (e.code, e.sqlstate.as_str(), e.message.as_str()),
        (1040, "HY000", "Too many connections")
    );
}

proptest! {
    #[test]
    fn numbers_come_back(n: u64) {
        let mut out = BytesMut::new();
        lenenc(&mut out, n);
        prop_assert_eq!(Body(&out).lenenc(), Ok(n));
    }

    #[test]
    fn columns_come_back(name in "\\PC{0,20}", kind: u8, charset: u16, length: u32, flags: u16, decimals: u8, extended: bool) {
        let column = Column { name, kind, charset, length, flags, decimals };
        let capabilities = if extended { caps::MARIADB_EXTENDED_METADATA } else { 0 };
        let mut reply = Reply::new(1, capabilities, 0);
        reply.rows(std::slice::from_ref(&column), [b""; 0]);
        let second = &reply.out[5..];
        let len = header(second).unwrap().len;
        prop_assert_eq!(super::column(&second[4..4 + len], capabilities), Ok(column));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), capabilities: u64, params: u16) {
        let _ = greeting(&bytes);
        let _ = hello(&bytes);
        let _ = change_user(&bytes, capabilities);
        let _ = ok(&bytes, capabilities);
        let _ = eof(&bytes);
        let _ = err(&bytes);
        let _ = prepare_ok(&bytes, capabilities);
        let _ = column(&bytes, capabilities);
        let _ = column_count(&bytes, capabilities);
        let _ = query(&bytes, capabilities);
        let _ = execute(&bytes, params, capabilities);
        let _ = bulk_execute(&bytes, params);
    }
}
