//! One client connection: requests one way, replies the other, each in a loop of its own, both in one task.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use faultbox_engine::{Conn, Origin, linger, reset};
use tokio::net::TcpStream;

use crate::link::Link;
use crate::replies::{Replies, ReplyEnd};
use crate::requests::{RequestEnd, Requests};

/// How an exchange over one pair of connections ended.
enum Outcome {
    /// Both sides have closed in good order, or there is nothing more to say.
    Closed,
    /// Either side was reset, or a rule says so.
    Reset,
    /// The proxy closes, in good order, after what it has said.
    Linger,
    /// The upstream closed while a request was held; it goes to a new connection.
    Redial,
}

/// Serves one connection to its end.
pub async fn run(conn: Conn) {
    let link = Link::default();
    let host = conn.origin.host.clone();
    serve(conn, &link).await;
    link.replies_over(&host.meter);
}

async fn serve(conn: Conn, link: &Link) {
    let Conn {
        mut client,
        mut upstream,
        origin,
    } = conn;
    let mut requests = Requests::default();
    loop {
        match exchange(&mut client, &mut upstream, &origin, link, &mut requests).await {
            Outcome::Closed => return,
            Outcome::Reset => {
                reset(client);
                reset(upstream);
                return;
            }
            Outcome::Linger => {
                drop(upstream);
                linger(client).await;
                return;
            }
            Outcome::Redial => match origin.redial().await {
                Ok(new) => upstream = new,
                Err(_) => {
                    reset(client);
                    return;
                }
            },
        }
    }
}

async fn exchange(
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    origin: &Origin,
    link: &Link,
    requests: &mut Requests,
) -> Outcome {
    let (cr, cw) = client.split();
    let (ur, uw) = upstream.split();
    let mut replies = Replies::new(origin, link);
    let mut up = pin!(requests.run(origin, link, cr, uw));
    let mut down = pin!(replies.run(ur, cw));
    let mut up_end = None;
    let mut down_over = false;
    poll_fn(|cx| {
        loop {
            if up_end.is_none()
                && let Poll::Ready(end) = up.as_mut().poll(cx)
            {
                match end {
                    RequestEnd::ClientGone => return Poll::Ready(Outcome::Reset),
                    RequestEnd::Redial => return Poll::Ready(Outcome::Redial),
                    end if down_over => return Poll::Ready(settle(&end)),
                    end => up_end = Some(end),
                }
            }
            if !down_over && let Poll::Ready(end) = down.as_mut().poll(cx) {
                match end {
                    ReplyEnd::Reset => return Poll::Ready(Outcome::Reset),
                    ReplyEnd::Linger => return Poll::Ready(Outcome::Linger),
                    ReplyEnd::Closed => match &up_end {
                        Some(end) => return Poll::Ready(settle(end)),
                        None => down_over = true,
                    },
                }
            }
            // What the request side tells, the reply side has heard by now. The other way it takes another round.
            if !link.take_untold() {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// Both directions are over, the replies with a FIN.
fn settle(requests: &RequestEnd) -> Outcome {
    match requests {
        RequestEnd::UpstreamGone => Outcome::Reset,
        _ => Outcome::Closed,
    }
}
