//! The keyspace: values with their types, expiry, and which command does what.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{SystemTime, UNIX_EPOCH};

use faultbox_redis::codec::number;
use faultbox_redis::value::Value;

use super::{hashes, keys, lists, sets, sorted, strings};

/// What a command answers: a value, or an error's whole text.
pub(super) type Answer = Result<Value, String>;

/// The arguments of a command, without its name.
pub(super) type Args<'a> = &'a [Vec<u8>];

pub(super) const SYNTAX: &str = "ERR syntax error";
pub(super) const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
pub(super) const NOT_A_FLOAT: &str = "ERR value is not a valid float";
const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

/// A value of a key.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    String(Vec<u8>),
    // Ordered, so that two runs see the same order.
    Hash(BTreeMap<Vec<u8>, Vec<u8>>),
    List(VecDeque<Vec<u8>>),
    Set(BTreeSet<Vec<u8>>),
    Sorted(HashMap<Vec<u8>, f64>),
}

impl Data {
    /// The type's name, as TYPE says it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Data::String(_) => "string",
            Data::Hash(_) => "hash",
            Data::List(_) => "list",
            Data::Set(_) => "set",
            Data::Sorted(_) => "zset",
        }
    }

    /// An aggregate without elements is a key that does not exist.
    fn is_empty(&self) -> bool {
        match self {
            Data::String(_) => false,
            Data::Hash(hash) => hash.is_empty(),
            Data::List(list) => list.is_empty(),
            Data::Set(set) => set.is_empty(),
            Data::Sorted(set) => set.is_empty(),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) data: Data,
    /// Milliseconds of Unix time.
    pub(super) expires: Option<i64>,
}

/// One database.
#[derive(Debug, Default)]
pub(super) struct Db {
    pub(super) entries: BTreeMap<Vec<u8>, Entry>,
    /// Counts the changes of each key, for WATCH; a key that is gone keeps its count.
    versions: HashMap<Vec<u8>, u64>,
}

/// Milliseconds of Unix time.
pub(super) fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// An integer argument.
pub(super) fn int(arg: &[u8]) -> Result<i64, String> {
    number(arg).ok_or_else(|| NOT_AN_INTEGER.to_owned())
}

/// A float argument.
pub(super) fn float(arg: &[u8]) -> Result<f64, String> {
    let text = std::str::from_utf8(arg).map_err(|_| NOT_A_FLOAT)?;
    text.parse::<f64>()
        .ok()
        .filter(|n| !n.is_nan())
        .ok_or_else(|| NOT_A_FLOAT.to_owned())
}

/// A float as the server keeps it: without an exponent and trailing zeros.
pub(super) fn show_float(n: f64) -> String {
    format!("{n}")
}

/// Is the argument this word, in whatever case?
pub(super) fn is(arg: &[u8], word: &str) -> bool {
    arg.eq_ignore_ascii_case(word.as_bytes())
}

/// Text as a value.
pub(super) fn bulk(bytes: impl Into<Vec<u8>>) -> Value {
    Value::Bulk(bytes.into())
}

/// A number of things as a value.
pub(super) fn count(n: usize) -> Value {
    Value::Integer(i64::try_from(n).unwrap_or(i64::MAX))
}

/// `+OK`.
pub(super) fn ok() -> Value {
    Value::Simple("OK".into())
}

/// Bytes, or nil.
pub(super) fn maybe(bytes: Option<impl Into<Vec<u8>>>) -> Value {
    bytes.map_or(Value::Null, |b| Value::Bulk(b.into()))
}

/// A range of indices as commands give it, from -1 backwards, cut to what there is.
pub(super) fn range(start: i64, stop: i64, len: usize) -> std::ops::Range<usize> {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    let from = if start < 0 {
        (start + len).max(0)
    } else {
        start
    };
    let to = if stop < 0 {
        stop + len
    } else {
        stop.min(len - 1)
    };
    if from > to {
        return 0..0;
    }
    usize::try_from(from).unwrap_or(0)..usize::try_from(to + 1).unwrap_or(0)
}

macro_rules! typed {
    ($read:ident, $write:ident, $variant:ident, $type:ty) => {
        /// The key's value, if there is one, of this type.
        pub(super) fn $read(&mut self, key: &[u8]) -> Result<Option<&$type>, String> {
            self.expire(key);
            match self.entries.get(key).map(|e| &e.data) {
                None => Ok(None),
                Some(Data::$variant(value)) => Ok(Some(value)),
                Some(_) => Err(WRONG_TYPE.to_owned()),
            }
        }

        /// Changes the key's value, which is made if there is none, and goes if it is left empty.
        pub(super) fn $write<R>(
            &mut self,
            key: &[u8],
            change: impl FnOnce(&mut $type) -> Result<R, String>,
        ) -> Result<R, String> {
            self.expire(key);
            let entry = self.entries.entry(key.to_vec()).or_insert_with(|| Entry {
                data: Data::$variant(<$type>::default()),
                expires: None,
            });
            let result = match &mut entry.data {
                Data::$variant(value) => change(value),
                _ => Err(WRONG_TYPE.to_owned()),
            };
            let empty = entry.data.is_empty();
            if empty {
                self.entries.remove(key);
            }
            if result.is_ok() {
                self.touch(key);
            }
            result
        }
    };
}

impl Db {
    typed!(string, change_string, String, Vec<u8>);
    typed!(hash, change_hash, Hash, BTreeMap<Vec<u8>, Vec<u8>>);
    typed!(list, change_list, List, VecDeque<Vec<u8>>);
    typed!(set, change_set, Set, BTreeSet<Vec<u8>>);
    typed!(sorted, change_sorted, Sorted, HashMap<Vec<u8>, f64>);

    /// Forgets the key if its time is up.
    pub(super) fn expire(&mut self, key: &[u8]) {
        let over = |e: &Entry| e.expires.is_some_and(|at| at <= now());
        if self.entries.get(key).is_some_and(over) {
            self.entries.remove(key);
            self.touch(key);
        }
    }

    /// Forgets all keys whose time is up.
    pub(super) fn expire_all(&mut self) {
        let now = now();
        let gone: Vec<Vec<u8>> = self
            .entries
            .iter()
            .filter(|(_, e)| e.expires.is_some_and(|at| at <= now))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.remove(&key);
        }
    }

    /// Counts a change.
    pub(super) fn touch(&mut self, key: &[u8]) {
        *self.versions.entry(key.to_vec()).or_default() += 1;
    }

    /// How often the key has changed.
    pub(super) fn version(&mut self, key: &[u8]) -> u64 {
        self.expire(key);
        self.versions.get(key).copied().unwrap_or_default()
    }

    /// Removes a key.
    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.touch(key);
        Some(entry)
    }

    /// The entry of a key that lives.
    pub(super) fn entry(&mut self, key: &[u8]) -> Option<&mut Entry> {
        self.expire(key);
        self.entries.get_mut(key)
    }

    /// Puts a value, whatever was there.
    pub(super) fn put(&mut self, key: &[u8], data: Data, expires: Option<i64>) {
        self.entries.insert(key.to_vec(), Entry { data, expires });
        self.touch(key);
    }

    /// Removes everything.
    pub(super) fn clear(&mut self) {
        let keys: Vec<Vec<u8>> = self.entries.keys().cloned().collect();
        for key in keys {
            self.remove(&key);
        }
    }

    /// Carries out a command; `None` if the keyspace has no such command.
    pub(super) fn run(&mut self, name: &str, args: Args) -> Option<Answer> {
        let (least, most) = arity(name)?;
        if args.len() < least || args.len() > most {
            return Some(Err(wrong_number(name)));
        }
        [
            strings::run,
            keys::run,
            hashes::run,
            lists::run,
            sets::run,
            sorted::run,
        ]
        .iter()
        .find_map(|family| family(self, name, args))
    }
}

/// The server's words for too few or too many arguments.
pub(super) fn wrong_number(name: &str) -> String {
    format!(
        "ERR wrong number of arguments for '{}' command",
        name.to_ascii_lowercase()
    )
}

/// How many arguments the keyspace's commands take at least and at most, their names not counted.
fn arity(name: &str) -> Option<(usize, usize)> {
    const ANY: usize = usize::MAX;
    Some(match name {
        "DBSIZE" | "RANDOMKEY" => (0, 0),
        "FLUSHDB" | "FLUSHALL" => (0, 1),
        "GET" | "GETDEL" | "STRLEN" | "INCR" | "DECR" | "TYPE" | "TTL" | "PTTL" | "PERSIST"
        | "EXPIRETIME" | "PEXPIRETIME" | "KEYS" | "HGETALL" | "HLEN" | "HKEYS" | "HVALS"
        | "LLEN" | "SCARD" | "SMEMBERS" | "ZCARD" => (1, 1),
        "LPOP" | "RPOP" | "SPOP" | "SRANDMEMBER" | "ZPOPMIN" | "ZPOPMAX" => (1, 2),
        "SETNX" | "GETSET" | "APPEND" | "INCRBY" | "DECRBY" | "INCRBYFLOAT" | "RENAME"
        | "RENAMENX" | "HGET" | "HEXISTS" | "HSTRLEN" | "LINDEX" | "RPOPLPUSH" | "SISMEMBER"
        | "ZSCORE" | "ZRANK" | "ZREVRANK" => (2, 2),
        "EXPIRE" | "PEXPIRE" | "EXPIREAT" | "PEXPIREAT" => (2, 3),
        "SETEX" | "PSETEX" | "GETRANGE" | "SETRANGE" | "HSETNX" | "HINCRBY" | "HINCRBYFLOAT"
        | "LRANGE" | "LSET" | "LREM" | "LTRIM" | "SMOVE" | "ZINCRBY" | "ZCOUNT"
        | "ZREMRANGEBYSCORE" | "ZREMRANGEBYRANK" => (3, 3),
        "LINSERT" | "LMOVE" => (4, 4),
        "DEL" | "UNLINK" | "EXISTS" | "TOUCH" | "MGET" | "SCAN" | "GETEX" | "SINTER" | "SUNION"
        | "SDIFF" => (1, ANY),
        "SET" | "MSET" | "MSETNX" | "COPY" | "HMGET" | "HDEL" | "LPUSH" | "RPUSH" | "LPUSHX"
        | "RPUSHX" | "SADD" | "SREM" | "SMISMEMBER" | "HSCAN" | "SSCAN" | "ZSCAN" | "ZREM"
        | "ZMSCORE" => (2, ANY),
        "HSET" | "HMSET" | "ZADD" | "ZRANGE" | "ZREVRANGE" | "ZRANGEBYSCORE"
        | "ZREVRANGEBYSCORE" => (3, ANY),
        _ => return None,
    })
}

/// What follows a cursor: a pattern and nothing that changes what comes back. All of it comes with the first call, and 0 says that it is
/// all; COUNT is a hint to servers (redis.io, SCAN).
pub(super) fn scanned<'a>(args: Args<'a>) -> Result<Option<&'a [u8]>, String> {
    int(&args[0]).map_err(|_| "ERR invalid cursor")?;
    let mut pattern = None;
    let mut rest = &args[1..];
    while let [word, value, more @ ..] = rest {
        match () {
            () if is(word, "MATCH") => pattern = Some(value.as_slice()),
            () if is(word, "COUNT") || is(word, "TYPE") => {}
            () => return Err(SYNTAX.to_owned()),
        }
        rest = more;
    }
    match rest {
        [] => Ok(pattern),
        [word] if is(word, "NOVALUES") => Ok(pattern),
        _ => Err(SYNTAX.to_owned()),
    }
}

/// Matches as the server does (stringmatchlen in its util.c): `*`, `?`, `[a-c]`, `[^a]`, `\`.
pub(super) fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Where the last star was, and how much of the text it has taken: only the last one need be tried again.
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p + 1, t));
            p += 1;
            continue;
        }
        if t == text.len() {
            return pattern[p..].iter().all(|b| *b == b'*');
        }
        match one(&pattern[p..], text[t]) {
            Some(used) => {
                p += used;
                t += 1;
            }
            None => match star {
                Some((after, taken)) => {
                    p = after;
                    t = taken + 1;
                    star = Some((after, t));
                }
                None => return false,
            },
        }
    }
}

/// How much of the pattern the byte takes, if it does.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [b'[', rest @ ..] => {
            let end = rest.iter().skip(1).position(|b| *b == b']')? + 1;
            let (not, set) = match &rest[..end] {
                [b'^', set @ ..] => (true, set),
                set => (false, set),
            };
            let mut found = false;
            let mut at = 0;
            while at < set.len() {
                if at + 2 < set.len() && set[at + 1] == b'-' {
                    found |= (set[at].min(set[at + 2])..=set[at].max(set[at + 2])).contains(&byte);
                    at += 3;
                } else {
                    found |= set[at] == byte;
                    at += 1;
                }
            }
            (found != not).then_some(end + 2)
        }
        [literal, ..] => (*literal == byte).then_some(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("user:*", "user:1", true),
            ("u?er", "user", true),
            ("h[a-c]t", "hbt", true),
            ("h[^a]t", "hat", false),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("*a*b", "xaxbxb", true),
            ("*a*c", "xaxb", false),
            ("[", "[", false),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                fits,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn ranges() {
        assert_eq!(range(0, -1, 3), 0..3);
        assert_eq!(range(-2, -1, 3), 1..3);
        assert_eq!(range(1, 100, 3), 1..3);
        assert_eq!(range(5, 9, 3), 0..0);
        assert_eq!(range(0, -9, 3), 0..0);
        assert_eq!(range(0, -1, 0), 0..0);
    }
}
