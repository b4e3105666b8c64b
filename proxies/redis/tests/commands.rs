//! The embedded command table against the servers' own.

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use faultbox_redis::commands::{full_name, keys, table};
use faultbox_redis::value::Value;
use support::{Server, servers};

struct Client(TcpStream, Vec<u8>);

impl Client {
    fn new(server: &Server) -> Client {
        let stream = TcpStream::connect(server.addr).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        Client(stream, vec![])
    }

    fn ask(&mut self, args: &[&str]) -> Value {
        let mut bytes = vec![];
        faultbox_redis::codec::put_command(&mut bytes, args);
        self.0.write_all(&bytes).unwrap();
        loop {
            if let Some((value, n)) = Value::decode(&self.1).unwrap() {
                self.1.drain(..n);
                return value;
            }
            let mut buf = [0; 65536];
            let n = self.0.read(&mut buf).unwrap();
            assert_ne!(n, 0, "the server closed");
            self.1.extend_from_slice(&buf[..n]);
        }
    }
}

fn list(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) | Value::Set(values) => values,
        other => panic!("no list: {other:?}"),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Bulk(bytes) => String::from_utf8(bytes.clone()).unwrap(),
        Value::Simple(text) => text.clone(),
        Value::Integer(n) => n.to_string(),
        other => panic!("no text: {other:?}"),
    }
}

/// The names and key specifications that a server tells, in the words of the table.
fn told(commands: &Value, found: &mut Vec<(String, String)>) {
    for command in list(commands) {
        let command = list(command);
        let field = |dict: &Value, name: &str| -> Value {
            let pairs = list(dict).chunks(2);
            let mut found = pairs.filter(|p| text(&p[0]) == name);
            found.next().expect("the field is there")[1].clone()
        };
        let mut specs = vec![];
        for spec in list(&command[8]) {
            let half = |name: &str| {
                let half = field(spec, name);
                let values = field(&half, "spec");
                let mut words = vec![text(&field(&half, "type"))];
                words.extend(list(&values).chunks(2).map(|p| text(&p[1])));
                words.join(" ")
            };
            let (begin, find) = (half("begin_search"), half("find_keys"));
            let flags: Vec<String> = list(&field(spec, "flags")).iter().map(text).collect();
            if begin != "unknown" && find != "unknown" && !flags.contains(&"not_key".into()) {
                specs.push(format!("{begin} {find}"));
            }
        }
        let name = text(&command[0]).replace('|', " ").to_uppercase();
        found.push((name, specs.join("; ")));
        told(&command[9], found);
    }
}

#[test]
fn the_table_is_what_the_servers_say() {
    let lines: std::collections::BTreeMap<&str, &str> = include_str!("../src/commands.txt")
        .lines()
        .map(|line| line.split_once('\t').unwrap_or((line, "")))
        .collect();
    for (name, binary) in servers() {
        let server = Server::start(&binary, &[]);
        let mut found = vec![];
        told(&Client::new(&server).ask(&["COMMAND"]), &mut found);
        assert!(found.len() > 300, "{name}: {}", found.len());
        for (command, specs) in found {
            assert_eq!(
                lines.get(command.as_str()),
                Some(&specs.as_str()),
                "{name}: {command}"
            );
        }
    }
}

/// The names and flags that a server tells.
fn flags(commands: &Value, found: &mut Vec<(String, Vec<String>)>) {
    for command in list(commands).iter().map(list) {
        let name = text(&command[0]).replace('|', " ").to_uppercase();
        found.push((name, list(&command[2]).iter().map(text).collect()));
        flags(&command[9], found);
    }
}

/// The recipes of a server that takes no writes, or has no memory left, mean what such a server refuses.
#[test]
fn the_recipes_lists_are_the_servers_flags() {
    let recipes = include_str!("../../../specs/recipes/redis.star");
    let listed = |name: &str| -> BTreeSet<&str> {
        let (_, rest) = recipes.split_once(&format!("{name} = ")).unwrap();
        let (list, _) = rest.split_once("\n]").unwrap();
        let (_, names) = list.split_once('[').unwrap();
        names.split('"').skip(1).step_by(2).collect()
    };
    for (list, flag) in [("_WRITES", "write"), ("_GROWS", "denyoom")] {
        let listed = listed(list);
        assert!(listed.len() > 50);
        // What none of the servers here has is of a newer one.
        for name in &listed {
            assert!(table().contains_key(name), "{list}: {name}");
        }
        for (server, binary) in servers() {
            let at = Server::start(&binary, &[]);
            let mut found = vec![];
            flags(&Client::new(&at).ask(&["COMMAND"]), &mut found);
            for (name, flags) in found {
                assert_eq!(
                    listed.contains(name.as_str()),
                    flags.iter().any(|f| f == flag),
                    "{server}: {name} in {list}"
                );
            }
        }
    }
}

/// Commands of every shape that keys have; COMMAND GETKEYS of the server is asked about each.
const CALLS: &[&str] = &[
    "GET k",
    "SET k v EX 10",
    "MSET a 1 b 2 c 3",
    "DEL a b c",
    "BITOP AND d a b",
    "EVAL return 2 a b c",
    "EVALSHA f 1 a b",
    "FCALL f 2 a b c",
    "XREAD COUNT 2 BLOCK 5 STREAMS a b 0 0",
    "XREADGROUP GROUP g c NOACK STREAMS s t > >",
    "ZUNIONSTORE d 2 a b WEIGHTS 1 2",
    "ZINTERCARD 2 a b LIMIT 1",
    "LMPOP 2 a b LEFT",
    "BLMPOP 0 2 a b LEFT",
    "BLPOP a b 0",
    "MIGRATE h 1 k 0 5 COPY",
    "SORT l BY w_* LIMIT 0 1 GET # STORE d",
    "GEORADIUS g 1 2 3 km STORE d",
    "GEORADIUSBYMEMBER g m 3 km STOREDIST d",
    "OBJECT ENCODING k",
    "MEMORY USAGE k",
    "XGROUP CREATE s g 0",
    "XINFO STREAM s",
    "COPY a b",
    "RENAME a b",
    "SMOVE a b m",
    "LMOVE a b LEFT RIGHT",
    "PFCOUNT a b",
    "HSET h f v",
    "STRALGO LCS KEYS a b",
];

#[test]
fn keys_are_where_the_server_finds_them() {
    for (name, binary) in servers() {
        let server = Server::start(&binary, &[]);
        let mut client = Client::new(&server);
        let mut compared = 0;
        for call in CALLS {
            let args: Vec<&str> = call.split(' ').collect();
            let command = full_name(args[0].as_bytes(), args.get(1).map(|a| a.as_bytes()));
            let ours: Vec<&str> = keys(&command, &args, args.len())
                .into_iter()
                .map(|i| args[i])
                .collect();
            let theirs = client.ask(&[&["COMMAND", "GETKEYS"], &args[..]].concat());
            let Value::Array(theirs) = theirs else {
                assert!(
                    !table().contains_key(command.as_str()),
                    "{name}: {call}: {theirs:?}"
                );
                continue;
            };
            let theirs: Vec<String> = theirs.iter().map(text).collect();
            assert_eq!(ours, theirs, "{name}: {call}");
            compared += 1;
        }
        assert!(compared >= 28, "{name}: {compared}");
        // An empty key makes MIGRATE read the list behind KEYS.
        let migrate = ["MIGRATE", "h", "1", "", "0", "5", "KEYS", "a", "b"];
        let theirs = client.ask(&[&["COMMAND", "GETKEYS"], &migrate[..]].concat());
        let theirs: Vec<String> = list(&theirs).iter().map(text).collect();
        let ours: Vec<&str> = keys("MIGRATE", &migrate, migrate.len())
            .into_iter()
            .map(|i| migrate[i])
            .collect();
        assert_eq!(ours, theirs, "{name}");
    }
}
