//! How a session gets its encryption, on an interface with TLS (manual, "SSL Session Encryption").

use bytes::BytesMut;
use faultbox_engine::{Conn, gone, heard, pump, send, tls};
use tokio::io::AsyncReadExt;

use crate::codec::{self, Startup};

/// TLS's handshake record: sslnegotiation=direct, without an SSLRequest.
const HANDSHAKE: u8 = 0x16;

/// Goes through the client's requests for encryption, and has TLS taken off where the server agrees. Returns the connection as it is where the
/// session begins, with what has been read of it; `None` if there is nothing left to do.
pub async fn negotiate(mut conn: Conn) -> Option<(Conn, BytesMut)> {
    let mut seen = BytesMut::new();
    if !conn.origin.has_tls() {
        return Some((conn, seen));
    }
    loop {
        tokio::select! {
            biased;
            () = heard(&conn.client) => {}
            // A server that speaks or closes unasked: whatever comes now, it is the client's to see.
            () = heard(&conn.upstream) => return Some((conn, seen)),
        }
        let mut first = [0];
        if seen.is_empty()
            && matches!(conn.client.peek(&mut first).await, Ok(1))
            && first[0] == HANDSHAKE
        {
            return Some((tls::upgrade(conn).await?, seen));
        }
        // The walk along the session's bytes finds an end or an error again.
        if !matches!(conn.client.read_buf(&mut seen).await, Ok(1..)) {
            return Some((conn, seen));
        }
        let request = match codec::startup(&seen) {
            Ok(Some((request @ (Startup::Ssl | Startup::GssEnc), len))) if len == seen.len() => {
                request
            }
            Ok(None) => continue,
            _ => return Some((conn, seen)),
        };
        let asked = async {
            send(&conn.upstream, &seen).await.ok()?;
            conn.upstream.read_u8().await.ok()
        };
        let answer = tokio::select! {
            answer = asked => answer,
            () = gone(&conn.client) => return None,
        };
        if let Some(answer) = answer {
            let _ = send(&conn.client, &[answer]).await;
        }
        seen.clear();
        match (request, answer) {
            (_, Some(b'N')) => {}
            (Startup::Ssl, Some(b'S')) => return Some((tls::upgrade(conn).await?, seen)),
            (request, answer) => {
                if matches!(request, Startup::GssEnc) && answer == Some(b'G') {
                    conn.origin.degraded(
                        "client",
                        "client and server have agreed on GSSAPI encryption; forwarded unseen (gssencmode=disable in the client)",
                    );
                }
                // An error, or the end: the rest of it is the client's, too.
                pump(conn.client, conn.upstream, None).await;
                return None;
            }
        }
    }
}
