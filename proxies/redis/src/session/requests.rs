//! The walk along the client's bytes.

use std::sync::Arc;

use super::{Expected, Instead, Session, Silence, Topic, Transaction, Verdict, Want};
use crate::codec::{self, Front, Head, Malformed, Rest};
use crate::commands;
use crate::effects::Effects;
use crate::redirect::Listing;
use crate::rules::Command;
use crate::value::Value;

/// How much of a command rules look at: what stands behind its first MiB passes unread, so that values of any size stream through.
const LOOKED_AT: usize = 1 << 20;
/// Subcommands and options that matter here are shorter.
const SHORT: usize = 64;

/// No server knows this command: it is refused without being run, and a transaction around it is aborted.
const REFUSED: &[&str] = &["FAULTBOX", "denied"];
/// This one is queued, and does nothing.
const HARMLESS: &[&str] = &["PING"];

/// What the front of the client's bytes is.
#[derive(Debug)]
pub enum Step {
    /// Not enough to tell.
    More,
    /// This many bytes go to the server.
    Pass(usize),
    /// This many bytes belong to a command that never reaches the server.
    Discard(usize),
    /// Where a command ends that never reaches the server is not known.
    Endless(Malformed),
    /// Everything goes to the server unseen.
    Raw,
    /// A command that a rule may mean.
    Request(Request),
}

/// A command that a rule may mean.
#[derive(Debug)]
pub struct Request {
    /// As rules see it.
    pub command: Command,
    kind: Kind,
    /// How many arguments, the name among them.
    argc: usize,
    /// How many bytes of it are looked at, and what follows them.
    len: usize,
    rest: Rest,
}

/// What a command does to the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Multi,
    Exec,
    Discard,
    Reset,
    Hello,
    Monitor,
    /// SYNC, PSYNC: what follows is a replication stream.
    Replication,
    /// Subscribing (or not) to topics.
    Topics(Topic, bool),
    Reply(Silence),
    /// CLUSTER SLOTS and its kin.
    Nodes(Listing),
    /// About the next command.
    AboutNext,
    /// Runs at once even in a transaction, with one reply.
    Unqueued,
}

/// The walk.
#[derive(Debug, Default)]
pub struct Requests {
    rest: Rest,
    discard: bool,
}

/// What becomes of the bytes of a decided command.
#[derive(Debug, PartialEq, Eq)]
pub struct Decided {
    /// So many bytes of the client's.
    pub len: usize,
    /// Do they go to the server?
    pub forward: bool,
    /// What goes there in their place.
    pub replaced: Option<&'static [&'static str]>,
}

impl Requests {
    /// Looks at the front of `buf`. `interested` says for a command's full name whether a rule may mean it.
    ///
    /// # Errors
    /// What a server calls a protocol error, or a command whose effects cannot be followed; the client's bytes go on raw.
    pub fn next(
        &mut self,
        buf: &[u8],
        session: &mut Session,
        interested: Option<&dyn Fn(&str) -> bool>,
    ) -> Result<Step, Malformed> {
        // The rest of a command that the server must not see stays away from it, whatever else is not understood by now.
        let discard = self.discard && !self.rest.is_over();
        if session.raw_client && !discard {
            return Ok(Step::Raw);
        }
        if discard {
            return Ok(match self.rest.skip(buf) {
                Ok(0) => Step::More,
                Ok(n) => Step::Discard(n),
                Err(why) => Step::Endless(why),
            });
        }
        if !self.rest.is_over() {
            return Ok(match self.rest.skip(buf)? {
                0 => Step::More,
                n => Step::Pass(n),
            });
        }
        self.discard = false;
        let head = match codec::front(buf)? {
            Front::More => return Ok(Step::More),
            Front::Nothing(n) => return Ok(Step::Pass(n)),
            Front::Inline(words, len) => {
                return self.inline(words, len, session, interested);
            }
            Front::Command(head) => head,
        };
        let kind = match kind_of(&head, buf)? {
            None => return Ok(Step::More),
            Some(kind) => kind,
        };
        if let Some(interested) = interested {
            let Some(name) = full_name(&head, buf)? else {
                return Ok(Step::More);
            };
            if interested(&name) {
                return self.request(name, kind, &head, buf);
            }
        }
        passed(kind, head.argc, None, session)?;
        self.rest = head.rest();
        let n = self.rest.skip(&buf[head.at..])?;
        Ok(Step::Pass(head.at + n))
    }

    fn inline(
        &mut self,
        words: Vec<Vec<u8>>,
        len: usize,
        session: &mut Session,
        interested: Option<&dyn Fn(&str) -> bool>,
    ) -> Result<Step, Malformed> {
        let argc = words.len();
        let options: Vec<&[u8]> = words[1..].iter().map(Vec::as_slice).collect();
        let kind = kind(&words[0], &options);
        let name = commands::full_name(&words[0], options.first().copied());
        if interested.is_some_and(|interested| interested(&name)) {
            let keys = commands::keys(&name, &words, argc);
            return Ok(Step::Request(Request {
                command: Command {
                    name,
                    args: words,
                    keys,
                },
                kind,
                argc,
                len,
                rest: Rest::default(),
            }));
        }
        passed(kind, argc, None, session)?;
        Ok(Step::Pass(len))
    }

    /// A command that a rule may mean: waits until it is whole, or long enough.
    fn request(
        &mut self,
        name: String,
        kind: Kind,
        head: &Head,
        buf: &[u8],
    ) -> Result<Step, Malformed> {
        let mut rest = head.rest();
        let len = head.at + rest.skip(&buf[head.at..])?;
        if !rest.is_over() && buf.len() < LOOKED_AT {
            return Ok(Step::More);
        }
        let mut args = vec![head.name.to_vec()];
        let seen = &buf[..len.min(LOOKED_AT.max(head.at))];
        args.extend(head.args(seen, usize::MAX)?.into_iter().map(<[u8]>::to_vec));
        let keys = commands::keys(&name, &args, head.argc);
        Ok(Step::Request(Request {
            command: Command { name, args, keys },
            kind,
            argc: head.argc,
            len,
            rest,
        }))
    }

    /// Carries out what was decided about a request, whose bytes are still at the front.
    ///
    /// # Errors
    /// As [`next`](Requests::next).
    pub fn decide(
        &mut self,
        request: &Request,
        verdict: Verdict,
        effects: Option<Box<Effects>>,
        session: &mut Session,
    ) -> Result<Decided, Malformed> {
        self.rest = request.rest;
        let (forward, replaced) = match verdict {
            Verdict::Pass => {
                passed(request.kind, request.argc, effects, session)?;
                (true, None)
            }
            verdict => (false, answered(request.kind, verdict, effects, session)),
        };
        self.discard = !forward;
        Ok(Decided {
            len: request.len,
            forward,
            replaced,
        })
    }
}

/// The full name, once its second word is there if it has one.
fn full_name(head: &Head, buf: &[u8]) -> Result<Option<String>, Malformed> {
    let name = commands::full_name(head.name, None);
    if head.argc < 2 || !commands::has_subcommands(&name) {
        return Ok(Some(name));
    }
    let options = options(head, buf, 1)?;
    Ok(options.map(|o| commands::full_name(head.name, o.first().copied())))
}

/// The first `n` arguments, once they are whole; one that is too long to be an option is cut.
fn options<'a>(head: &Head, buf: &'a [u8], n: usize) -> Result<Option<Vec<&'a [u8]>>, Malformed> {
    let n = n.min(head.argc - 1);
    let args = head.args(buf, n)?;
    // The last one may go on where the buffer ends.
    let ends_early = args.len() < n
        || args.last().is_some_and(|last| {
            last.len() < SHORT && last.as_ptr_range().end == buf.as_ptr_range().end
        });
    Ok((!ends_early).then_some(args))
}

/// What the command does to the session; `None` if there is not enough of it to tell.
fn kind_of(head: &Head, buf: &[u8]) -> Result<Option<Kind>, Malformed> {
    let read = match () {
        () if head.name.eq_ignore_ascii_case(b"CLIENT") => 2,
        () if head.name.eq_ignore_ascii_case(b"CLUSTER") => 1,
        () => return Ok(Some(kind(head.name, &[]))),
    };
    Ok(options(head, buf, read)?.map(|options| kind(head.name, &options)))
}

fn kind(name: &[u8], options: &[&[u8]]) -> Kind {
    let mut upper = [0; 12];
    let Some(word) = upper.get_mut(..name.len()) else {
        return Kind::Plain;
    };
    word.copy_from_slice(name);
    word.make_ascii_uppercase();
    let option = |i: usize, word: &str| {
        options
            .get(i)
            .is_some_and(|o| o.eq_ignore_ascii_case(word.as_bytes()))
    };
    match &*word {
        b"MULTI" => Kind::Multi,
        b"EXEC" => Kind::Exec,
        b"DISCARD" => Kind::Discard,
        b"RESET" => Kind::Reset,
        b"HELLO" => Kind::Hello,
        b"MONITOR" => Kind::Monitor,
        b"SYNC" | b"PSYNC" => Kind::Replication,
        b"SUBSCRIBE" => Kind::Topics(Topic::Channel, true),
        b"PSUBSCRIBE" => Kind::Topics(Topic::Pattern, true),
        b"SSUBSCRIBE" => Kind::Topics(Topic::Shard, true),
        b"UNSUBSCRIBE" => Kind::Topics(Topic::Channel, false),
        b"PUNSUBSCRIBE" => Kind::Topics(Topic::Pattern, false),
        b"SUNSUBSCRIBE" => Kind::Topics(Topic::Shard, false),
        b"WATCH" | b"QUIT" => Kind::Unqueued,
        b"ASKING" => Kind::AboutNext,
        b"CLIENT" if option(0, "CACHING") => Kind::AboutNext,
        b"CLUSTER" => match options.first().and_then(|o| Listing::of(o)) {
            Some(listing) => Kind::Nodes(listing),
            None => Kind::Plain,
        },
        b"CLIENT" if option(0, "REPLY") && option(1, "ON") => Kind::Reply(Silence::None),
        b"CLIENT" if option(0, "REPLY") && option(1, "OFF") => Kind::Reply(Silence::All),
        b"CLIENT" if option(0, "REPLY") && option(1, "SKIP") => Kind::Reply(Silence::Next),
        _ => Kind::Plain,
    }
}

/// A command goes to the server.
fn passed(
    kind: Kind,
    argc: usize,
    effects: Option<Box<Effects>>,
    session: &mut Session,
) -> Result<(), Malformed> {
    session.about_next = kind == Kind::AboutNext;
    let silent = match session.silence {
        Silence::None => false,
        Silence::All => true,
        Silence::Next => {
            session.silence = Silence::None;
            true
        }
    };
    if let Some(transaction) = &mut session.transaction
        && !matches!(
            kind,
            Kind::Multi | Kind::Exec | Kind::Discard | Kind::Reset | Kind::Unqueued
        )
    {
        // These change what the server says while it runs the transaction, in ways that differ from server to server.
        if matches!(
            kind,
            Kind::Topics(..) | Kind::Reply(_) | Kind::Monitor | Kind::Replication | Kind::Hello
        ) {
            return Err(Malformed("a command about replies inside MULTI".into()));
        }
        transaction.queued += 1;
        expect(silent, Want::Plain(1), effects, session);
        return Ok(());
    }
    let want = match kind {
        Kind::Plain | Kind::AboutNext | Kind::Unqueued => Want::Plain(1),
        Kind::Multi if session.transaction.is_none() => {
            session.transactions += 1;
            session.transaction = Some(Transaction {
                id: session.transactions,
                ..Transaction::default()
            });
            Want::Multi(session.transactions)
        }
        Kind::Multi => Want::Plain(1),
        Kind::Exec => match session.transaction.take() {
            Some(transaction) => Want::Exec(transaction.results),
            None => Want::Plain(1),
        },
        Kind::Discard => {
            // With arguments it is refused, and the transaction goes on.
            if argc == 1 {
                session.transaction = None;
            }
            Want::Plain(1)
        }
        Kind::Reset => {
            session.transaction = None;
            session.silence = Silence::None;
            expect(false, Want::Reset, effects, session);
            return Ok(());
        }
        Kind::Nodes(listing) => Want::Nodes(listing),
        Kind::Hello => Want::Hello,
        Kind::Monitor => Want::Monitor,
        Kind::Replication => {
            session.raw_client = true;
            session.raw_server = true;
            return Ok(());
        }
        Kind::Topics(topic, subscribe) => {
            let count = match argc {
                1 if !subscribe => None,
                // Without a channel it is refused, with one reply.
                1 => Some(1),
                argc => Some(argc as u64 - 1),
            };
            // What is subscribed to is confirmed whatever CLIENT REPLY says; see the replies' walk.
            Want::Topics(topic, subscribe, count)
        }
        Kind::Reply(Silence::None) => {
            session.silence = Silence::None;
            expect(false, Want::Plain(1), effects, session);
            return Ok(());
        }
        Kind::Reply(silence) => {
            if session.silence != Silence::All {
                session.silence = silence;
            }
            return Ok(());
        }
    };
    expect(silent, want, effects, session);
    Ok(())
}

fn expect(silent: bool, want: Want, effects: Option<Box<Effects>>, session: &mut Session) {
    match (want, effects) {
        _ if silent => {}
        (Want::Plain(1), None) => session.push_plain(),
        (want, effects) => session.push(Expected {
            want,
            instead: None,
            effects,
        }),
    }
}

/// A command does not go to the server; what goes there in its place.
fn answered(
    kind: Kind,
    verdict: Verdict,
    effects: Option<Box<Effects>>,
    session: &mut Session,
) -> Option<&'static [&'static str]> {
    let silent = session.silence != Silence::None;
    let in_transaction = session.transaction.is_some();
    let ends = in_transaction && kind == Kind::Exec;
    // The server waits for a command that what came before is about.
    let awaited = session.silence == Silence::Next || session.about_next;
    if session.silence == Silence::Next {
        session.silence = Silence::None;
    }
    session.about_next = false;
    let value = match verdict {
        Verdict::Deny(error) if ends => Some(Arc::new(error.of_exec())),
        Verdict::Deny(error) => Some(Arc::new(error.value())),
        Verdict::Answer(value) => Some(value),
        Verdict::Drop | Verdict::Pass => None,
    };
    let queued = !matches!(
        kind,
        Kind::Multi | Kind::Exec | Kind::Discard | Kind::Reset | Kind::Unqueued
    );
    let replaced: Option<&'static [&'static str]> = match (&value, &mut session.transaction) {
        // Lost on its way, as if it had never been sent.
        (None, _) if !awaited => return None,
        (None, _) => Some(REFUSED),
        (Some(_), _) if ends => Some(&["DISCARD"]),
        (Some(value), Some(transaction)) if queued && !matches!(**value, Value::Error(_)) => {
            transaction
                .results
                .push((transaction.queued, value.clone()));
            transaction.queued += 1;
            // The server says QUEUED, and the result is replaced when it has run.
            expect(silent, Want::Plain(1), effects, session);
            return Some(HARMLESS);
        }
        (Some(_), Some(_)) => Some(REFUSED),
        (Some(_), None) => awaited.then_some(REFUSED),
    };
    if ends {
        session.transaction = None;
    }
    if !silent {
        session.push(Expected {
            want: match replaced {
                Some(_) => Want::Plain(1),
                None => Want::Ours,
            },
            instead: Some(value.map_or(Instead::Nothing, Instead::Value)),
            effects,
        });
    }
    replaced
}
