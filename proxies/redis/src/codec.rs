//! Bytes ↔ commands and replies, one at a time: the Redis serialization protocol (RESP2 and RESP3) and inline commands.
//!
//! No state but what [`Rest`] and [`Reader`] keep of a message whose end has not come yet, and no I/O. Incomplete input is not an
//! error. Where a server is lenient (it does not look at what ends a bulk string), this is too; what a server refuses as a protocol
//! error is [`Malformed`].

use memchr::memchr;

/// The longest line that a length stands in: a type byte, 19 digits, a sign, CR LF.
const LENGTH_LINE: usize = 23;
/// The longest inline command (PROTO_INLINE_MAX_SIZE of the server).
pub const INLINE: usize = 64 << 10;
/// The most arguments of a command, and the longest of them: what fits an `int` and the server's largest `proto-max-bulk-len`.
const MOST: i64 = i32::MAX as i64;

/// Why bytes are not the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub String);

impl Malformed {
    fn new(what: &str, line: &[u8]) -> Malformed {
        let line = &line[..line.len().min(32)];
        Malformed(format!("{what} \"{}\"", line.escape_ascii()))
    }
}

/// A number as the server reads one (string2ll): no plus sign, no leading zeros, no white space.
pub fn number(digits: &[u8]) -> Option<i64> {
    let unsigned = digits.strip_prefix(b"-").unwrap_or(digits);
    let negative = unsigned.len() < digits.len();
    let (first, rest) = match unsigned {
        [b'0'] if !negative => return Some(0),
        [first @ b'1'..=b'9', rest @ ..] => (first, rest),
        _ => return None,
    };
    // Downwards, where there is one number more.
    let below = rest.iter().try_fold(-i64::from(first - b'0'), |n, digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        n.checked_mul(10)?.checked_sub(digit.into())
    })?;
    match negative {
        true => Some(below),
        false => below.checked_neg(),
    }
}

/// The line at the front of `buf` that begins with a type byte and holds a length; the length, and where the next byte is.
///
/// # Errors
/// A line that holds no length.
pub fn length(buf: &[u8]) -> Result<Option<(i64, usize)>, Malformed> {
    let seen = &buf[..buf.len().min(LENGTH_LINE)];
    // A few digits: looking at each is quicker than a search made for long texts.
    match seen.iter().position(|b| *b == b'\r') {
        Some(end) => match number(&buf[1.min(end)..end]) {
            // Both sides skip what follows the CR without a look.
            Some(n) if buf.len() >= end + 2 => Ok(Some((n, end + 2))),
            Some(_) => Ok(None),
            None => Err(Malformed::new("no length:", &buf[..end])),
        },
        None if buf.len() >= LENGTH_LINE => Err(Malformed::new("no length:", seen)),
        None => Ok(None),
    }
}

/// What of the current command has not been seen yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rest {
    /// Arguments whose length is still to come.
    args: u64,
    /// Bytes of the current argument, with its CR LF.
    bulk: u64,
}

impl Rest {
    /// Has everything been seen?
    pub fn is_over(&self) -> bool {
        self.args == 0 && self.bulk == 0
    }

    /// How many bytes at the front of `buf` belong to the command. Stops in front of a length that is not whole.
    ///
    /// # Errors
    /// What a server calls a protocol error.
    pub fn skip(&mut self, buf: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        loop {
            let here = self.bulk.min((buf.len() - at) as u64);
            self.bulk -= here;
            at += here as usize;
            if self.bulk > 0 || self.args == 0 || at == buf.len() {
                return Ok(at);
            }
            match bulk_length(&buf[at..])? {
                None => return Ok(at),
                Some((len, next)) => {
                    at += next;
                    self.args -= 1;
                    self.bulk = len + 2;
                }
            }
        }
    }
}

/// The length of an argument.
fn bulk_length(buf: &[u8]) -> Result<Option<(u64, usize)>, Malformed> {
    if let Some(other) = buf.first().filter(|b| **b != b'$') {
        return Err(Malformed::new("expected '$', got", &[*other]));
    }
    match length(buf)? {
        None => Ok(None),
        Some((n @ 0..=MOST, next)) => Ok(Some((n as u64, next))),
        Some((n, _)) => Err(Malformed(format!("a bulk string of {n} bytes"))),
    }
}

/// The beginning of a command: an array of bulk strings, up to and with its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'a> {
    /// How many arguments it has, its name among them.
    pub argc: usize,
    /// Its name as written.
    pub name: &'a [u8],
    /// Where the first argument after the name begins.
    pub at: usize,
}

/// What stands at the front of the client's bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Front<'a> {
    /// Not enough to tell.
    More,
    /// That many bytes which ask nothing: an empty array, an empty line.
    Nothing(usize),
    /// A command.
    Command(Head<'a>),
    /// An inline command: its words and its length.
    Inline(Vec<Vec<u8>>, usize),
}

/// Commands have shorter names; a longer one is the server's to refuse, and need not be held until it is whole.
const LONGEST_NAME: u64 = 256;

/// Looks at the front of the client's bytes.
///
/// # Errors
/// What a server calls a protocol error.
pub fn front(buf: &[u8]) -> Result<Front<'_>, Malformed> {
    match buf.first() {
        None => return Ok(Front::More),
        Some(b'*') => {}
        Some(_) => return inline(buf),
    }
    let Some((argc, at)) = length(buf)? else {
        return Ok(Front::More);
    };
    match argc {
        ..=0 => return Ok(Front::Nothing(at)),
        1..=MOST => {}
        _ => return Err(Malformed(format!("an array of {argc} arguments"))),
    }
    let argc = argc as usize;
    if at == buf.len() {
        return Ok(Front::More);
    }
    let Some((len, next)) = bulk_length(&buf[at..])? else {
        return Ok(Front::More);
    };
    let at = at + next;
    if len > LONGEST_NAME {
        return Ok(Front::Command(Head {
            argc: argc + 1,
            name: b"",
            // Where its own length stands: the whole of it is the rest.
            at: at - next,
        }));
    }
    let end = at + len as usize;
    match buf.get(at..end) {
        Some(name) if buf.len() >= end + 2 => Ok(Front::Command(Head {
            argc,
            name,
            at: end + 2,
        })),
        _ => Ok(Front::More),
    }
}

impl Head<'_> {
    /// What follows the name.
    pub fn rest(&self) -> Rest {
        Rest {
            args: self.argc as u64 - 1,
            bulk: 0,
        }
    }

    /// The arguments after the name as far as `buf` (where the head was read from) has them, at most `most`; the last one may be cut
    /// off where `buf` ends.
    ///
    /// # Errors
    /// What a server calls a protocol error.
    pub fn args<'b>(&self, buf: &'b [u8], most: usize) -> Result<Vec<&'b [u8]>, Malformed> {
        let mut args = vec![];
        let mut at = self.at;
        while args.len() < most.min(self.argc - 1) && at < buf.len() {
            let Some((len, next)) = bulk_length(&buf[at..])? else {
                break;
            };
            at += next;
            let end = (at + len as usize).min(buf.len());
            args.push(&buf[at.min(end)..end]);
            at = end + 2;
        }
        Ok(args)
    }
}

fn inline(buf: &[u8]) -> Result<Front<'_>, Malformed> {
    let seen = &buf[..buf.len().min(INLINE)];
    let Some(end) = memchr(b'\n', seen) else {
        return match buf.len() >= INLINE {
            true => Err(Malformed("an inline command of more than 64 KiB".into())),
            // The start of a TLS record would otherwise wait for a line break that never comes.
            false if buf.starts_with(&[0x16, 0x03]) => Err(Malformed(
                "the client speaks TLS, which rules cannot read".into(),
            )),
            false => Ok(Front::More),
        };
    };
    let line = &buf[..end];
    let words = words(line.strip_suffix(b"\r").unwrap_or(line))
        .ok_or_else(|| Malformed("unbalanced quotes in an inline command".into()))?;
    Ok(match words.is_empty() {
        true => Front::Nothing(end + 1),
        false => Front::Inline(words, end + 1),
    })
}

/// The words of an inline command, as the server splits them (sdssplitargs): white space between, double quotes with escapes, single
/// quotes with `\'`. `None` if a quote is not closed, or is followed by something other than white space.
fn words(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let space = |b: &u8| b.is_ascii_whitespace() || *b == 0x0b;
    let mut words = vec![];
    let mut rest = line;
    loop {
        while rest.first().is_some_and(space) {
            rest = &rest[1..];
        }
        // To the server, a zero byte ends the line.
        if matches!(rest.first(), None | Some(0)) {
            return Some(words);
        }
        let mut word = vec![];
        while let Some((&b, tail)) = rest.split_first() {
            match b {
                0 => break,
                b if space(&b) => break,
                b'"' | b'\'' => {
                    rest = quoted(b, tail, &mut word)?;
                    if rest.first().is_some_and(|b| !space(b)) {
                        return None;
                    }
                    break;
                }
                b => {
                    word.push(b);
                    rest = tail;
                }
            }
        }
        words.push(word);
    }
}

/// Reads up to the closing quote; what follows it.
fn quoted<'a>(quote: u8, mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    let hex = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    loop {
        rest = match rest {
            [b'\\', b'x', a, b, tail @ ..]
                if quote == b'"' && hex(*a).is_some() && hex(*b).is_some() =>
            {
                word.push(hex(*a)? << 4 | hex(*b)?);
                tail
            }
            [b'\\', b, tail @ ..] if quote == b'"' => {
                word.push(match b {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => *other,
                });
                tail
            }
            [b'\\', b'\'', tail @ ..] if quote == b'\'' => {
                word.push(b'\'');
                tail
            }
            [b, tail @ ..] if *b == quote => return Some(tail),
            [0, ..] | [] => return None,
            [b, tail @ ..] => {
                word.push(*b);
                tail
            }
        };
    }
}

/// A piece of a reply that carries content, as [`Reader::read`] passes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    /// From here in the bytes read.
    pub start: usize,
    /// To here.
    pub end: usize,
    /// The type byte.
    pub kind: u8,
    /// Does the content go on past these bytes?
    pub goes_on: bool,
    /// Is it the last content of the whole reply?
    pub last: bool,
}

/// Walks along one reply, however it is cut.
///
/// Aggregates need no stack: each adds its elements to the number of values that are still to come.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reader {
    /// Values to come.
    left: u64,
    /// Bytes of the current string, with its CR LF.
    bulk: u64,
    /// In a line whose end has not come.
    line: bool,
    /// Follows another reader, and sees exactly what that one has taken.
    follows: bool,
    kind: u8,
    /// The last integer.
    pub integer: Option<i64>,
}

impl Reader {
    /// At the beginning of a reply.
    pub fn new() -> Reader {
        Reader {
            left: 1,
            ..Reader::default()
        }
    }

    /// At the beginning of a reply whose pieces another reader has cut: it takes them whole.
    pub fn following() -> Reader {
        Reader {
            follows: true,
            ..Reader::new()
        }
    }

    /// Has the whole reply been seen?
    pub fn is_over(&self) -> bool {
        self.left == 0 && self.bulk == 0 && !self.line
    }

    /// How many bytes at the front of `buf` belong to the reply. Stops in front of a length or number that is not whole.
    ///
    /// # Errors
    /// Bytes that begin no value.
    pub fn skip(&mut self, buf: &[u8]) -> Result<usize, Malformed> {
        self.read(buf, |_| ())
    }

    /// The same, and tells where the contents are.
    ///
    /// # Errors
    /// As [`skip`](Reader::skip).
    pub fn read(&mut self, buf: &[u8], mut each: impl FnMut(Payload)) -> Result<usize, Malformed> {
        let mut at = 0;
        loop {
            if self.bulk > 0 {
                let here = self.bulk.min((buf.len() - at) as u64);
                let content = here.min(self.bulk.saturating_sub(2));
                if content > 0 {
                    each(Payload {
                        start: at,
                        end: at + content as usize,
                        kind: self.kind,
                        goes_on: self.bulk - content > 2,
                        last: self.left == 0,
                    });
                }
                self.bulk -= here;
                at += here as usize;
                if self.bulk > 0 {
                    return Ok(at);
                }
            } else if self.line {
                let found = memchr(b'\n', &buf[at..]);
                let end = match found {
                    Some(i) => at + i,
                    // The last byte waits for what follows, so that one sees which is a line's last.
                    None if self.follows => buf.len(),
                    None => {
                        let held = if buf.ends_with(b"\r") { 2 } else { 1 };
                        buf.len().saturating_sub(held).max(at)
                    }
                };
                let content = match buf[at..end].last() {
                    Some(b'\r') => end - 1,
                    _ => end,
                };
                if content > at {
                    each(Payload {
                        start: at,
                        end: content,
                        kind: self.kind,
                        goes_on: found.is_none(),
                        last: self.left == 0,
                    });
                }
                if found.is_none() {
                    return Ok(content);
                }
                self.line = false;
                at = end + 1;
            }
            if self.left == 0 || at == buf.len() {
                return Ok(at);
            }
            match self.begin(&buf[at..])? {
                0 => return Ok(at),
                n => at += n,
            }
        }
    }

    /// The beginning of a value: up to its content. 0: not enough to tell.
    fn begin(&mut self, buf: &[u8]) -> Result<usize, Malformed> {
        self.kind = buf[0];
        let (add, taken) = match buf[0] {
            b'+' | b'-' | b'(' => {
                self.line = true;
                (0, 1)
            }
            b':' | b',' | b'#' | b'_' => match memchr(b'\n', &buf[..buf.len().min(64)]) {
                None if buf.len() >= 64 => return Err(Malformed::new("no number:", &buf[..32])),
                None => return Ok(0),
                Some(end) => {
                    if buf[0] == b':' {
                        let digits = buf[1..end].strip_suffix(b"\r");
                        self.integer = digits.and_then(number);
                    }
                    self.line = true;
                    (0, 1)
                }
            },
            b'$' | b'=' | b'!' => match length(buf)? {
                None => return Ok(0),
                Some((-1, next)) if buf[0] == b'$' => (0, next),
                Some((n @ 0.., next)) => {
                    self.bulk = (n as u64).saturating_add(2);
                    (0, next)
                }
                Some((n, _)) => return Err(Malformed(format!("a string of {n} bytes"))),
            },
            b'*' | b'~' | b'>' | b'%' | b'|' => match length(buf)? {
                None => return Ok(0),
                Some((-1, next)) if buf[0] == b'*' => (0, next),
                Some((n @ 0.., next)) => {
                    let each = if matches!(buf[0], b'%' | b'|') { 2 } else { 1 };
                    // An attribute stands before the value that it is about.
                    let more = (n as u64).checked_mul(each);
                    let more = more.and_then(|m| m.checked_add(u64::from(buf[0] == b'|')));
                    match more.filter(|m| self.left.checked_add(*m).is_some()) {
                        Some(more) => (more, next),
                        None => return Err(Malformed(format!("{n} elements"))),
                    }
                }
                Some((n, _)) => return Err(Malformed(format!("{n} elements"))),
            },
            _ => return Err(Malformed::new("no reply begins with", &buf[..1])),
        };
        self.left = self.left - 1 + add;
        Ok(taken)
    }
}

/// The first element of an array or a push, if it is a short string: what kind of message it is.
#[derive(Debug, PartialEq, Eq)]
pub enum First<'a> {
    /// Not enough to tell.
    More,
    /// This string.
    Word(&'a [u8]),
    /// Something else.
    Other,
}

/// The longest word that says what kind of message an array is ("punsubscribe").
const LONGEST_WORD: i64 = 16;

/// Looks at the first element of the aggregate at the front of `buf`.
///
/// # Errors
/// Bytes that are no length where one must be.
pub fn first_element(buf: &[u8]) -> Result<First<'_>, Malformed> {
    let Some((count, at)) = length(buf)? else {
        return Ok(First::More);
    };
    match buf.get(at) {
        _ if count < 1 => return Ok(First::Other),
        None => return Ok(First::More),
        Some(b'$') => {}
        Some(_) => return Ok(First::Other),
    }
    match length(&buf[at..])? {
        None => Ok(First::More),
        Some((len @ 0..=LONGEST_WORD, next)) => {
            let word = buf.get(at + next..at + next + len as usize);
            Ok(word.map_or(First::More, First::Word))
        }
        Some(_) => Ok(First::Other),
    }
}

/// Writes a command.
pub fn put_command(out: &mut Vec<u8>, args: &[impl AsRef<[u8]>]) {
    out.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
    for arg in args {
        let arg = arg.as_ref();
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_the_servers() {
        let (least, most) = (i64::MIN.to_string(), i64::MAX.to_string());
        let ends = [(&*least, i64::MIN), (&*most, i64::MAX)];
        for (text, value) in [("0", 0), ("-1", -1), ("12", 12)].into_iter().chain(ends) {
            assert_eq!(number(text.as_bytes()), Some(value));
        }
        for bad in [
            "",
            "-",
            "01",
            "+1",
            " 1",
            "1 ",
            "-0",
            "9223372036854775808",
            "-9223372036854775809",
            "1x",
            "1!",
        ] {
            assert_eq!(number(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn fronts() {
        let head = |buf: &'static [u8]| match front(buf) {
            Ok(Front::Command(head)) => (head.argc, head.name, head.at),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            head(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"),
            (2, &b"GET"[..], 13)
        );
        for cut in 0..12 {
            assert_eq!(
                front(&b"*1\r\n$4\r\nPING\r\n"[..cut]),
                Ok(Front::More),
                "{cut}"
            );
        }
        assert_eq!(front(b"*0\r\n*1"), Ok(Front::Nothing(4)));
        assert_eq!(front(b"*-1\r\n"), Ok(Front::Nothing(5)));
        assert_eq!(front(b"\r\n"), Ok(Front::Nothing(2)));
        assert_eq!(front(b"  \n"), Ok(Front::Nothing(3)));
        for bad in [
            &b"*x\r\n"[..],
            b"*1\r\n+PING\r\n",
            b"*1\r\n$-1\r\n",
            b"*99999999999\r\n",
            b"*11111111111111111111111",
            b"\x16\x03\x01\x02",
            b"SET \"a\n",
            b"SET \"a\"b\n",
        ] {
            assert!(front(bad).is_err(), "{}", bad.escape_ascii());
        }
        assert!(front(&[b'a'; INLINE]).is_err());
    }

    #[test]
    fn inline_words_are_split_as_the_server_does() {
        let split = |line: &[u8]| words(line).map(|w| w.join(&b'|'));
        assert_eq!(split(b" set  k\tv ").as_deref(), Some(&b"set|k|v"[..]));
        assert_eq!(
            split(br#"set "a b\x41\n\"" 'it\'s' ''"#).as_deref(),
            Some(&b"set|a bA\n\"|it's|"[..])
        );
        assert_eq!(split(b"a\"b c\" d").as_deref(), Some(&b"ab c|d"[..]));
        for bad in [&b"a \"b"[..], b"'a", b"\"a\"b"] {
            assert_eq!(split(bad), None);
        }
    }

    const REPLIES: &[&str] = &[
        "+OK\r\n",
        "-ERR no\r\n",
        ":42\r\n",
        "$-1\r\n",
        "$0\r\n\r\n",
        "$5\r\nhe\r\nl\r\n",
        "*-1\r\n",
        "*0\r\n",
        "*2\r\n*1\r\n:1\r\n$1\r\nx\r\n",
        "%1\r\n+a\r\n~2\r\n#t\r\n,1.5\r\n",
        ">2\r\n$7\r\nmessage\r\n_\r\n",
        "|1\r\n+k\r\n:1\r\n*1\r\n(123456789012345678901\r\n",
        "=7\r\ntxt:abc\r\n",
        "!3\r\nERR\r\n",
    ];

    fn walk(bytes: &[u8], cuts: &[usize]) -> (usize, usize) {
        let (mut reader, mut values, mut passed) = (Reader::new(), 0, 0);
        let mut end = 0;
        let mut cuts = cuts.iter();
        loop {
            let n = reader.skip(&bytes[passed..end]).unwrap();
            passed += n;
            if reader.is_over() {
                values += 1;
                reader = Reader::new();
                continue;
            }
            if end == bytes.len() {
                return (values, passed);
            }
            end = (end + cuts.next().copied().unwrap_or(bytes.len())).min(bytes.len());
        }
    }

    proptest! {
        #[test]
        fn any_chunking_finds_the_same_replies(
            picks in proptest::collection::vec(0..REPLIES.len(), 0..12),
            cuts in proptest::collection::vec(1..9usize, 0..60),
        ) {
            let bytes: String = picks.iter().map(|i| REPLIES[*i]).collect();
            prop_assert_eq!(walk(bytes.as_bytes(), &cuts), (picks.len(), bytes.len()));
        }

        #[test]
        fn any_chunking_finds_the_end_of_a_command(
            args in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 1..6),
            cut in 0..60usize,
        ) {
            let mut bytes = vec![];
            put_command(&mut bytes, &args);
            let Ok(Front::Command(head)) = front(&bytes) else { panic!("no command") };
            prop_assert_eq!((head.argc, head.name), (args.len(), &args[0][..]));
            let rest: Vec<Vec<u8>> = head.args(&bytes, usize::MAX).unwrap().into_iter().map(<[u8]>::to_vec).collect();
            prop_assert_eq!(&rest[..], &args[1..]);
            let (mut rest, mut at) = (head.rest(), head.at);
            let cut = cut.clamp(at, bytes.len());
            at += rest.skip(&bytes[at..cut]).unwrap();
            at += rest.skip(&bytes[at..]).unwrap();
            prop_assert!(rest.is_over() && at == bytes.len());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(Front::Command(head)) = front(&bytes) {
                let _ = head.args(&bytes, usize::MAX);
                let _ = head.rest().skip(&bytes[head.at..]);
            }
            let _ = Reader::new().skip(&bytes);
            if !bytes.is_empty() {
                let _ = first_element(&bytes);
            }
        }
    }
}
