//! The fields of every message in every version, read once from `messages.txt`.

use std::collections::HashMap;
use std::sync::LazyLock;

/// The table, as it is written.
const TEXT: &str = include_str!("messages.txt");

/// One request that clients send, and its response.
pub struct Api {
    /// The number in a request's header.
    pub key: i16,
    /// Kafka's name in lower case: "produce", "init_producer_id".
    pub name: &'static str,
    /// The oldest version known.
    pub oldest: i16,
    /// The newest version known.
    pub newest: i16,
    /// The first version with compact lengths and tagged fields (KIP-482); `i16::MAX` if there is none.
    pub flexible: i16,
    /// The request's fields.
    pub request: Vec<Field>,
    /// The response's fields.
    pub response: Vec<Field>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Api {
    fn eq(&self, other: &Api) -> bool {
        self.key == other.key
    }
}

impl Api {
    /// Is this version known?
    pub fn knows(&self, version: i16) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }

    /// Does this version have compact lengths and tagged fields?
    pub fn is_flexible(&self, version: i16) -> bool {
        version >= self.flexible
    }

    /// Does this version's response header have tagged fields? That of ApiVersions never has: a client reads it before it knows
    /// what the broker speaks (KIP-511).
    pub fn reply_header_is_flexible(&self, version: i16) -> bool {
        self.is_flexible(version) && self.key != API_VERSIONS
    }
}

/// Keys that the code asks for by name.
pub const PRODUCE: i16 = 0;
/// See [`PRODUCE`].
pub const FETCH: i16 = 1;
/// See [`PRODUCE`].
pub const LIST_OFFSETS: i16 = 2;
/// See [`PRODUCE`].
pub const METADATA: i16 = 3;
/// See [`PRODUCE`].
pub const FIND_COORDINATOR: i16 = 10;
/// See [`PRODUCE`].
pub const SASL_HANDSHAKE: i16 = 17;
/// See [`PRODUCE`].
pub const API_VERSIONS: i16 = 18;
/// See [`PRODUCE`].
pub const DESCRIBE_CLUSTER: i16 = 60;
/// See [`PRODUCE`].
pub const SHARE_FETCH: i16 = 78;
/// See [`PRODUCE`].
pub const SHARE_ACKNOWLEDGE: i16 = 79;

/// One field.
#[derive(Debug)]
pub struct Field {
    /// Its name in the table.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// May it be null?
    pub nullable: bool,
    /// The first version that has it.
    pub since: i16,
    /// The last version that has it.
    pub until: i16,
    /// Its number among the tagged fields; `None` for a field of the fixed part.
    pub tag: Option<u32>,
    /// The value of a number or truth value that nobody has set.
    pub default: i64,
}

impl Field {
    /// Does this version have the field in its fixed part?
    pub fn is_fixed_in(&self, version: i16) -> bool {
        self.tag.is_none() && self.is_in(version)
    }

    /// Does this version have the field?
    pub fn is_in(&self, version: i16) -> bool {
        (self.since..=self.until).contains(&version)
    }
}

/// What a field holds.
#[derive(Debug)]
pub enum Kind {
    /// One byte, 0 or 1.
    Bool,
    /// A signed integer of so many bytes.
    Signed(usize),
    /// An unsigned integer of so many bytes.
    Unsigned(usize),
    /// An IEEE 754 double.
    Float,
    /// 16 bytes.
    Uuid,
    /// Text.
    Text,
    /// Bytes, record batches among them.
    Bytes,
    /// One structure.
    Struct(Vec<Field>),
    /// A list of structures.
    List(Vec<Field>),
    /// A list of plain values, read as a list of structures with one field.
    Bare(Vec<Field>),
}

/// All of them, by key.
pub fn apis() -> impl Iterator<Item = &'static Api> {
    TABLE.iter()
}

/// The API with this key, if the table has it.
pub fn api(key: i16) -> Option<&'static Api> {
    static BY_KEY: LazyLock<HashMap<i16, &'static Api>> =
        LazyLock::new(|| TABLE.iter().map(|api| (api.key, api)).collect());
    BY_KEY.get(&key).copied()
}

static TABLE: LazyLock<Vec<Api>> = LazyLock::new(|| {
    let mut lines = Lines {
        rest: TEXT
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect(),
    };
    let mut table = vec![];
    while !lines.rest.is_empty() {
        let at = lines.rest.len();
        let api = lines.api();
        // The table is part of the program, and every test reads it.
        table.push(api.unwrap_or_else(|| panic!("messages.txt, {at} lines from its end")));
    }
    table
});

/// The lines that have not been read.
struct Lines {
    rest: std::collections::VecDeque<&'static str>,
}

impl Lines {
    fn api(&mut self) -> Option<Api> {
        let mut words = self.rest.pop_front()?.strip_prefix("api ")?.split(' ');
        let (key, name) = (words.next()?.parse().ok()?, words.next()?);
        let (oldest, newest) = words.next()?.split_once('-')?;
        let flexible = match words.nth(1)? {
            "never" => i16::MAX,
            since => since.parse().ok()?,
        };
        (self.rest.pop_front()? == "request").then_some(())?;
        let request = self.fields(2)?;
        (self.rest.pop_front()? == "response").then_some(())?;
        Some(Api {
            key,
            name,
            oldest: oldest.parse().ok()?,
            newest: newest.parse().ok()?,
            flexible,
            request,
            response: self.fields(2)?,
        })
    }

    /// The fields that are indented by so much.
    fn fields(&mut self, indent: usize) -> Option<Vec<Field>> {
        let mut fields = vec![];
        while let Some(line) = self.rest.front().copied() {
            let text = line.trim_start();
            if line.len() - text.len() != indent {
                break;
            }
            self.rest.pop_front();
            fields.push(self.field(text, indent)?);
        }
        Some(fields)
    }

    fn field(&mut self, text: &'static str, indent: usize) -> Option<Field> {
        let (name, rest) = text.split_once(' ')?;
        let end = match rest.strip_prefix('[') {
            Some(_) => rest.find(']')? + 1,
            None => rest.find([' ', '?']).unwrap_or(rest.len()),
        };
        let (kind, rest) = rest.split_at(end);
        let nullable = rest.starts_with('?');
        let mut field = Field {
            name,
            kind: match kind {
                "[]" => Kind::List(self.fields(indent + 2)?),
                "{}" => Kind::Struct(self.fields(indent + 2)?),
                plain => match plain.strip_prefix('[') {
                    None => scalar(plain)?,
                    Some(list) => {
                        let (kind, name) = list.strip_suffix(']')?.split_once(' ')?;
                        Kind::Bare(vec![Field {
                            name,
                            kind: scalar(kind)?,
                            nullable: false,
                            since: 0,
                            until: i16::MAX,
                            tag: None,
                            default: 0,
                        }])
                    }
                },
            },
            nullable,
            since: 0,
            until: i16::MAX,
            tag: None,
            default: 0,
        };
        let mut words = rest.trim_start_matches('?').split_whitespace();
        while let Some(word) = words.next() {
            match word {
                "tag" => field.tag = Some(words.next()?.parse().ok()?),
                "=" => field.default = words.next()?.parse().ok()?,
                range => match (range.strip_suffix('+'), range.split_once('-')) {
                    (Some(since), _) => field.since = since.parse().ok()?,
                    (None, Some(("", until))) => field.until = until.parse().ok()?,
                    (None, Some((since, until))) => {
                        field.since = since.parse().ok()?;
                        field.until = until.parse().ok()?;
                    }
                    (None, None) => {
                        field.since = range.parse().ok()?;
                        field.until = field.since;
                    }
                },
            }
        }
        Some(field)
    }
}

fn scalar(word: &str) -> Option<Kind> {
    Some(match word {
        "bool" => Kind::Bool,
        "i8" => Kind::Signed(1),
        "i16" => Kind::Signed(2),
        "i32" => Kind::Signed(4),
        "i64" => Kind::Signed(8),
        "u16" => Kind::Unsigned(2),
        "u32" => Kind::Unsigned(4),
        "f64" => Kind::Float,
        "uuid" => Kind::Uuid,
        "str" => Kind::Text,
        "bytes" => Kind::Bytes,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads_whole() {
        let produce = api(PRODUCE).unwrap();
        assert_eq!(
            (
                produce.name,
                produce.oldest,
                produce.newest,
                produce.flexible
            ),
            ("produce", 0, 13, 9)
        );
        let names: Vec<_> = produce.request.iter().map(|f| f.name).collect();
        assert_eq!(names, ["transactional_id", "acks", "timeout_ms", "topics"]);
        let Kind::List(topics) = &produce.request[3].kind else {
            panic!("a list")
        };
        assert!(topics[0].is_fixed_in(12) && !topics[0].is_in(13) && topics[1].is_in(13));
        let endpoints = produce.response.last().unwrap();
        assert_eq!((endpoints.name, endpoints.tag), ("node_endpoints", Some(0)));
        let fetch = api(FETCH).unwrap();
        assert_eq!(fetch.request[0].default, -1);
        assert!(apis().count() > 55);
    }

    #[test]
    fn every_name_and_key_stands_once() {
        for one in apis() {
            let same = |other: &&Api| other.key == one.key || other.name == one.name;
            assert_eq!(apis().filter(same).count(), 1, "{}", one.name);
        }
    }
}
