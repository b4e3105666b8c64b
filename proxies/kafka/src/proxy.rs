//! One client connection: requests one way, responses the other, each in a loop of its own, both in one task.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use faultbox_contract::ProxyHost;
use faultbox_engine::{Conn, Origin, linger, reset};

use crate::codec::{Malformed, schema};
use crate::link::Link;
use crate::losses::Losses;
use crate::replies::{Replies, ReplyEnd};
use crate::requests::{RequestEnd, Requests};
use crate::subjects::Names;

/// The largest message that is looked at: brokers take 100 MiB (`socket.request.max.bytes`) and send 55 MB (`fetch.max.bytes`) unless
/// they are told otherwise.
pub const MOST_HELD: usize = 128 << 20;

/// What the connections of one proxy share.
#[derive(Debug, Default)]
pub struct Shared {
    /// What the topics are called.
    pub names: Names,
    /// What producers have lost.
    pub losses: Losses,
    unknown: Mutex<HashSet<(i16, i16)>>,
    unreadable: Mutex<HashSet<&'static str>>,
    large: AtomicBool,
}

impl Shared {
    /// Says, once for each, that rules do not see requests of this kind or version.
    pub fn note_unknown(&self, origin: &Origin, api: i16, version: i16) {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        if unknown.insert((api, version)) {
            let name = schema::api(api).map_or_else(|| format!("kind {api}"), |a| a.name.into());
            let why = format!("rules do not know requests of {name} version {version}");
            origin.degraded("client", &why);
        }
    }

    /// Says, once for each reason, that a rule could not act.
    pub fn note_unreadable(&self, origin: &Origin, why: Malformed) {
        let mut unreadable = self
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if unreadable.insert(why.0) {
            origin.degraded("client", &format!("a rule could not act: {}", why.0));
        }
    }

    /// Says, once, that a message was too large for rules to look at.
    pub fn note_large(&self, origin: &Origin, len: usize) {
        if !self.large.swap(true, Ordering::Relaxed) {
            let why = format!("a message of {len} bytes: rules look at those up to {MOST_HELD}");
            origin.degraded("client", &why);
        }
    }
}

/// How an exchange ended.
enum Outcome {
    /// Both sides have closed in good order.
    Closed,
    /// Either side was reset, or a rule says so.
    Reset,
    /// The proxy closes, in good order, after what it has said.
    Linger,
}

/// Runs the proxy until dropped.
pub async fn serve(host: ProxyHost) {
    let shared = Arc::new(Shared::default());
    faultbox_engine::serve(host, move |conn| handle(conn, shared.clone())).await;
}

async fn handle(mut conn: Conn, shared: Arc<Shared>) {
    match exchange(&mut conn, &shared).await {
        Outcome::Closed => {}
        Outcome::Reset => {
            reset(conn.client);
            reset(conn.upstream);
        }
        Outcome::Linger => {
            drop(conn.upstream);
            linger(conn.client).await;
        }
    }
}

async fn exchange(conn: &mut Conn, shared: &Shared) -> Outcome {
    let link = Link::default();
    let (cr, cw) = conn.client.split();
    let (ur, uw) = conn.upstream.split();
    let mut requests = Requests::new(&conn.origin, &link, shared);
    let mut replies = Replies::new(&conn.origin, &link, shared);
    let outcome = {
        let mut up = std::pin::pin!(requests.run(cr, uw));
        let mut down = std::pin::pin!(replies.run(ur, cw));
        let mut up_end = None;
        let mut down_over = false;
        loop {
            tokio::select! {
                end = &mut up, if up_end.is_none() => match end {
                    RequestEnd::ClientGone => break Outcome::Reset,
                    end if down_over => break settle(end),
                    end => up_end = Some(end),
                },
                end = &mut down, if !down_over => match end {
                    ReplyEnd::Reset => break Outcome::Reset,
                    ReplyEnd::Linger => break Outcome::Linger,
                    ReplyEnd::Closed => match up_end.take() {
                        Some(end) => break settle(end),
                        None => down_over = true,
                    },
                },
            }
        }
    };
    // What stays unanswered was a request all the same.
    link.replies_over(&conn.origin.host.meter);
    outcome
}

/// Both directions are over, the responses with a FIN.
fn settle(requests: RequestEnd) -> Outcome {
    match requests {
        RequestEnd::UpstreamGone => Outcome::Reset,
        _ => Outcome::Closed,
    }
}
