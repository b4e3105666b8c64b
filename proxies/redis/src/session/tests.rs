//! The two walks together, without sockets: what a client hears when a rule decides about what it says.

use std::sync::Arc;

use super::*;
use crate::rules::Error;

/// A client, a server, and the walks between them.
#[derive(Default)]
struct Talk {
    session: Session,
    requests: Requests,
    replies: Replies,
    from_client: Vec<u8>,
    from_server: Vec<u8>,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
}

impl Talk {
    /// The client says this; `verdicts` decide about commands by name.
    fn says(&mut self, bytes: &str, verdicts: &dyn Fn(&str) -> Option<Verdict>) -> &mut Talk {
        self.from_client.extend_from_slice(bytes.as_bytes());
        let interested = |name: &str| verdicts(name).is_some();
        loop {
            let step = self
                .requests
                .next(&self.from_client, &mut self.session, Some(&interested))
                .unwrap();
            match step {
                Step::More => return self.hears(),
                Step::Pass(n) => self.to_server.extend(self.from_client.drain(..n)),
                Step::Discard(n) => drop(self.from_client.drain(..n)),
                Step::Endless(why) => panic!("{}", why.0),
                Step::Raw => {
                    let all = std::mem::take(&mut self.from_client);
                    self.to_server.extend(all);
                    return self.hears();
                }
                Step::Request(request) => {
                    let verdict = verdicts(&request.command.name).unwrap_or_default();
                    let decided = self
                        .requests
                        .decide(&request, verdict, None, &mut self.session)
                        .unwrap();
                    let bytes = self.from_client.drain(..decided.len);
                    if decided.forward {
                        self.to_server.extend(bytes);
                    } else {
                        drop(bytes);
                    }
                    if let Some(args) = decided.replaced {
                        crate::codec::put_command(&mut self.to_server, args);
                    }
                }
            }
        }
    }

    /// The server says this.
    fn answers(&mut self, bytes: &str) -> &mut Talk {
        self.from_server.extend_from_slice(bytes.as_bytes());
        self.hears()
    }

    fn hears(&mut self) -> &mut Talk {
        loop {
            let reply = self
                .replies
                .next(&self.from_server, &mut self.session)
                .unwrap();
            match reply {
                Reply::More => return self,
                Reply::Pass(n) | Reply::Affected(n) => {
                    self.to_client.extend(self.from_server.drain(..n));
                }
                Reply::Replace(n, instead) => {
                    self.from_server.drain(..n);
                    self.to_client.extend(instead);
                }
                Reply::Raw => {
                    let all = std::mem::take(&mut self.from_server);
                    self.to_client.extend(all);
                    return self;
                }
            }
        }
    }

    /// What reached the server since the last look.
    fn sent(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.to_server)).unwrap()
    }

    /// What reached the client since the last look.
    fn heard(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.to_client)).unwrap()
    }
}

fn pass(_: &str) -> Option<Verdict> {
    None
}

fn deny(name: &'static str) -> impl Fn(&str) -> Option<Verdict> {
    move |n| (n == name).then(|| Verdict::Deny(Arc::new(Error::new("OOM full"))))
}

fn answer(name: &'static str, value: Value) -> impl Fn(&str) -> Option<Verdict> {
    move |n| (n == name).then(|| Verdict::Answer(Arc::new(value.clone())))
}

fn lose(name: &'static str) -> impl Fn(&str) -> Option<Verdict> {
    move |n| (n == name).then_some(Verdict::Drop)
}

#[test]
fn a_redirection_leads_through_the_nodes_proxy() {
    let node = |upstream: &str, reach: &str| faultbox_contract::Address {
        host: "127.0.0.1".into(),
        upstream: upstream.parse().unwrap(),
        reach: reach.parse().unwrap(),
    };
    let nodes = [node("127.0.0.1:7001", "127.0.0.1:61001")];
    let addresses = Arc::new(nodes.into_iter().collect());
    let said = "-MOVED 5 127.0.0.1:7001\r\n-ASK 5 127.0.0.1:7002\r\n:1\r\n";
    for cut in 0..said.len() {
        let mut talk = Talk {
            replies: Replies::new(Arc::clone(&addresses), [127, 0, 0, 1].into()),
            ..Talk::default()
        };
        talk.says("GET a\nGET b\nINCR c\n", &pass);
        talk.answers(&said[..cut]).answers(&said[cut..]);
        assert_eq!(
            talk.heard(),
            "-MOVED 5 127.0.0.1:61001\r\n-ASK 5 127.0.0.1:7002\r\n:1\r\n",
            "{cut}"
        );
        assert!(talk.session.queue.is_empty());
    }
}

const REFUSED: &str = "*2\r\n$8\r\nFAULTBOX\r\n$6\r\ndenied\r\n";

#[test]
fn an_answer_of_ours_waits_for_those_before_it() {
    let mut talk = Talk::default();
    talk.says("GET a\nSET b 1\nGET c\n", &deny("SET"));
    assert_eq!(talk.sent(), "GET a\nGET c\n");
    assert_eq!(talk.heard(), "");
    assert_eq!(talk.answers("$1\r\nA").heard(), "$1\r\nA");
    assert_eq!(talk.answers("\r\n").heard(), "\r\n-OOM full\r\n");
    assert_eq!(talk.answers("$-1\r\n").heard(), "$-1\r\n");
    assert_eq!(
        talk.says("SET b 1\n", &deny("SET")).heard(),
        "-OOM full\r\n"
    );
    assert_eq!((talk.session.asked, talk.session.done), (4, 4));
}

#[test]
fn a_dropped_command_leaves_no_gap() {
    let mut talk = Talk::default();
    talk.says("GET a\nSET b 1\nGET c\n", &lose("SET"));
    assert_eq!(talk.sent(), "GET a\nGET c\n");
    assert_eq!(talk.answers(":1\r\n:2\r\n").heard(), ":1\r\n:2\r\n");
}

#[test]
fn in_a_transaction_the_server_itself_aborts() {
    let mut talk = Talk::default();
    talk.says("MULTI\nSET a 1\nGET b\nEXEC\n", &deny("SET"));
    assert_eq!(talk.sent(), format!("MULTI\n{REFUSED}GET b\nEXEC\n"));
    let abort = "-EXECABORT Transaction discarded because of previous errors.\r\n";
    talk.answers(&format!(
        "+OK\r\n-ERR unknown command\r\n+QUEUED\r\n{abort}"
    ));
    assert_eq!(
        talk.heard(),
        format!("+OK\r\n-OOM full\r\n+QUEUED\r\n{abort}")
    );
    // The next command is out of it.
    talk.says("SET a 1\n", &deny("SET"));
    assert_eq!(
        (talk.sent().as_str(), talk.heard().as_str()),
        ("", "-OOM full\r\n")
    );
}

#[test]
fn a_transaction_that_never_began_holds_nothing() {
    let mut talk = Talk::default();
    talk.says("MULTI\n", &pass).answers("-NOPERM no\r\n");
    talk.sent();
    talk.heard();
    talk.says("SET a 1\n", &deny("SET"));
    assert_eq!(
        (talk.sent().as_str(), talk.heard().as_str()),
        ("", "-OOM full\r\n")
    );
}

#[test]
fn an_exec_that_fails_discards() {
    let mut talk = Talk::default();
    talk.says("MULTI\nSET a 1\nEXEC\n", &deny("EXEC"));
    assert_eq!(talk.sent(), "MULTI\nSET a 1\n*1\r\n$7\r\nDISCARD\r\n");
    talk.answers("+OK\r\n+QUEUED\r\n+OK\r\n");
    assert_eq!(
        talk.heard(),
        "+OK\r\n+QUEUED\r\n-EXECABORT Transaction discarded because of: OOM full\r\n"
    );
}

#[test]
fn a_response_in_a_transaction_is_its_result() {
    let ours = answer("GET", Value::Bulk(b"ours".to_vec()));
    for cut in 0..60 {
        let mut talk = Talk::default();
        talk.says("MULTI\nGET a\nSET b 1\nGET c\nEXEC\n", &ours);
        assert_eq!(
            talk.sent(),
            "MULTI\n*1\r\n$4\r\nPING\r\nSET b 1\n*1\r\n$4\r\nPING\r\nEXEC\n"
        );
        let said =
            "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n+PONG\r\n$1\r\nx\r\n+PONG\r\n:9\r\n";
        talk.says("PING\n", &pass);
        let cut = cut.min(said.len());
        talk.answers(&said[..cut]).answers(&said[cut..]);
        assert_eq!(
            talk.heard(),
            "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n$4\r\nours\r\n$1\r\nx\r\n$4\r\nours\r\n:9\r\n",
            "{cut}"
        );
    }
    // A watched key has changed: null, and the next reply is the next command's.
    let mut talk = Talk::default();
    talk.says("MULTI\nGET a\nEXEC\nPING\n", &ours);
    talk.answers("+OK\r\n+QUEUED\r\n*-1\r\n+PONG\r\n");
    assert_eq!(talk.heard(), "+OK\r\n+QUEUED\r\n*-1\r\n+PONG\r\n");
}

#[test]
fn silent_commands_get_no_answer_of_ours_either() {
    let mut talk = Talk::default();
    talk.says(
        "CLIENT REPLY OFF\nSET a 1\nCLIENT REPLY ON\nSET a 1\n",
        &deny("SET"),
    );
    assert_eq!(talk.sent(), "CLIENT REPLY OFF\nCLIENT REPLY ON\n");
    assert_eq!(talk.answers("+OK\r\n").heard(), "+OK\r\n-OOM full\r\n");
    // The server skips the next command that it sees: it must see one.
    talk.says(
        "*3\r\n$6\r\nCLIENT\r\n$5\r\nreply\r\n$4\r\nskip\r\nSET a 1\nGET a\n",
        &deny("SET"),
    );
    assert!(talk.sent().ends_with(&format!("skip\r\n{REFUSED}GET a\n")));
    assert_eq!(talk.answers("$-1\r\n").heard(), "$-1\r\n");
}

#[test]
fn what_asking_is_about_is_answered_by_the_server() {
    let mut talk = Talk::default();
    talk.says("ASKING\nGET a\n", &deny("GET"));
    assert_eq!(talk.sent(), format!("ASKING\n{REFUSED}"));
    assert_eq!(
        talk.answers("+OK\r\n-ERR unknown\r\n").heard(),
        "+OK\r\n-OOM full\r\n"
    );
}

#[test]
fn subscriptions_are_answered_by_a_message_per_channel() {
    let mut talk = Talk::default();
    let confirm = |kind: &str, name: &str, n: i64| {
        format!(
            "*3\r\n${}\r\n{kind}\r\n${}\r\n{name}\r\n:{n}\r\n",
            kind.len(),
            name.len()
        )
    };
    talk.says("SUBSCRIBE a b\nPSUBSCRIBE p*\nPING\n", &deny("PING"));
    let message = "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n";
    talk.answers(&confirm("subscribe", "a", 1)).answers(message);
    talk.heard();
    talk.answers(&confirm("subscribe", "b", 2));
    talk.heard();
    // Ours comes when all that was asked before is answered.
    let last = confirm("psubscribe", "p*", 3);
    assert_eq!(talk.answers(&last).heard(), format!("{last}-OOM full\r\n"));
    assert_eq!((talk.session.channels, talk.session.patterns), (2, 1));
    // All channels, however many there are; the pattern stays.
    talk.says("UNSUBSCRIBE\nPING\n", &pass);
    talk.answers(&confirm("unsubscribe", "b", 2))
        .answers(message);
    assert_eq!(talk.session.queue.len(), 2);
    talk.answers(&confirm("unsubscribe", "a", 1));
    talk.answers("*2\r\n$4\r\npong\r\n$0\r\n\r\n");
    assert!(talk.session.queue.is_empty());
    talk.says("PUNSUBSCRIBE\nUNSUBSCRIBE\nLRANGE l 0 -1\n", &pass);
    talk.answers(&confirm("punsubscribe", "p*", 0));
    talk.answers("*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n");
    assert!(!talk.session.is_subscribed());
    // A list that looks like a message is a reply to who has not subscribed.
    talk.answers("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n");
    assert!(talk.session.queue.is_empty());
}

#[test]
fn pushes_are_no_replies() {
    let mut talk = Talk::default();
    let value = answer("GET", Value::Boolean(true));
    talk.says("GET a\n", &value);
    assert_eq!(talk.heard(), ":1\r\n");
    talk.says("HELLO 3\nSUBSCRIBE c\nGET b\nPING\n", &value);
    talk.answers("%1\r\n+proto\r\n:3\r\n");
    talk.answers(">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\na\r\n");
    talk.heard();
    let confirmed = ">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n";
    assert_eq!(
        talk.answers(confirmed).heard(),
        format!("{confirmed}#t\r\n")
    );
    talk.answers(">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n+PONG\r\n");
    assert!(talk.session.queue.is_empty());
    talk.says("RESET\nGET a\n", &value);
    talk.heard();
    assert_eq!(talk.answers("+RESET\r\n").heard(), "+RESET\r\n:1\r\n");
    assert!(!talk.session.is_subscribed());
}

#[test]
fn monitor_is_a_stream_beside_the_replies() {
    let mut talk = Talk::default();
    talk.says("MONITOR\nPING\n", &pass);
    talk.answers("+OK\r\n+1700000000.123456 [0 127.0.0.1:1] \"PING\"\r\n");
    assert_eq!(talk.session.queue.len(), 1);
    talk.answers("+PONG\r\n+1700000000.2 [0 lua] \"GET\"\r\n");
    assert!(talk.session.queue.is_empty());
}

#[test]
fn a_replica_is_left_alone() {
    let mut talk = Talk::default();
    talk.says("PSYNC ? -1\nREPLCONF ACK 0\n", &deny("REPLCONF"));
    assert_eq!(talk.sent(), "PSYNC ? -1\nREPLCONF ACK 0\n");
    talk.answers("+FULLRESYNC x 0\r\n$5\r\nREDISPING");
    assert_eq!(talk.heard(), "+FULLRESYNC x 0\r\n$5\r\nREDISPING");
}

#[test]
fn what_answers_nothing_is_an_error_but_an_error_is_an_answer() {
    let mut talk = Talk::default();
    talk.answers("-ERR max number of clients reached\r\n");
    assert!(talk.heard().starts_with("-ERR max"));
    assert!(talk.replies.next(b"+OK\r\n", &mut talk.session).is_err());
    // What makes replies depend on the server's version is not followed.
    let mut talk = Talk::default();
    talk.says("MULTI\n", &pass);
    let step = talk
        .requests
        .next(b"SUBSCRIBE c\n", &mut talk.session, None);
    assert!(step.is_err());
}

#[test]
fn a_value_of_any_size_is_decided_by_its_first_mebibyte() {
    let mut talk = Talk::default();
    let value = "x".repeat(3 << 20);
    let command = format!(
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n{value}\r\n",
        value.len()
    );
    let (head, tail) = command.split_at(2 << 20);
    talk.says(head, &deny("SET"));
    assert_eq!(talk.heard(), "-OOM full\r\n");
    assert!(talk.from_client.is_empty());
    talk.says(tail, &deny("SET"));
    talk.says("GET k\n", &deny("SET"));
    assert_eq!(talk.sent(), "GET k\n");
    // And one that passes streams.
    talk.says(head, &pass);
    assert_eq!(talk.sent().len(), head.len());
}

#[test]
fn lists_of_nodes_lead_through_the_proxies_in_their_turn() {
    let node = faultbox_contract::Address {
        host: "127.0.0.1".into(),
        upstream: "127.0.0.1:7001".parse().unwrap(),
        reach: "127.0.0.1:61001".parse().unwrap(),
    };
    let addresses: Arc<faultbox_contract::Addresses> = Arc::new([node].into_iter().collect());
    let asks = "PING\r\n*2\r\n$7\r\ncluster\r\n$5\r\nslots\r\nCLUSTER NODES\r\nCLUSTER INFO\r\n\
        MULTI\r\nCLUSTER NODES\r\nEXEC\r\nCLUSTER SLOTS\r\n";
    let slots = "*1\r\n*3\r\n:0\r\n:9\r\n*2\r\n$9\r\n127.0.0.1\r\n:7001\r\n";
    let (led, list) = (
        slots.replace(":7001", ":61001"),
        "$18\r\nid :7001@1 a b c d\r\n",
    );
    let rewritten = "$28\r\nid 127.0.0.1:61001@1 a b c d\r\n";
    let said = format!(
        "+PONG\r\n{slots}{list}{list}+OK\r\n+QUEUED\r\n*1\r\n{list}-ERR This instance has cluster support disabled\r\n"
    );
    let heard = format!(
        "+PONG\r\n{led}{rewritten}{list}+OK\r\n+QUEUED\r\n*1\r\n{list}-ERR This instance has cluster support disabled\r\n"
    );
    for cut in 0..said.len() {
        let mut talk = Talk {
            replies: Replies::new(Arc::clone(&addresses), [127, 0, 0, 1].into()),
            ..Talk::default()
        };
        talk.says(asks, &pass);
        assert_eq!(talk.sent(), asks);
        talk.answers(&said[..cut]).answers(&said[cut..]);
        assert_eq!(talk.heard(), heard, "{cut}");
        assert!(talk.session.queue.is_empty());
    }
    // Nobody to lead to: every byte as it comes.
    let mut talk = Talk::default();
    talk.says(asks, &pass).answers(&said);
    assert_eq!(talk.heard(), said);
}

#[test]
fn the_rest_of_a_denied_command_stays_away_when_all_else_goes_raw() {
    let mut talk = Talk::default();
    let value = "x".repeat(2 << 20);
    let begun = format!(
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n{value}",
        value.len() + 4
    );
    talk.says(&begun, &deny("SET"));
    talk.session.raw_client = true;
    talk.says("rest\r\n", &|_| None);
    assert_eq!(talk.to_server, b"");
    talk.says("PING\r\n", &|_| None);
    assert_eq!(talk.to_server, b"PING\r\n");
}

#[test]
fn where_a_denied_command_ends_may_be_unknown() {
    let mut talk = Talk::default();
    let value = "x".repeat(2 << 20);
    let begun = format!("*4\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n{value}", value.len());
    talk.says(&begun, &deny("SET"));
    let step = talk
        .requests
        .next(b"\r\n?no length\r\n", &mut talk.session, None);
    assert!(matches!(step, Ok(Step::Endless(_))), "{step:?}");
}
