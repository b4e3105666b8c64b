//! What forwarding promises: bytes, half-close and death look the same as without the proxy.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use faultbox_engine::testing::{Harness, free_addr};
use faultbox_engine::{pump, reset, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(60);

fn raw(upstream: SocketAddr) -> Harness {
    Harness::run(upstream, |host| {
        let meter = host.meter.clone();
        serve(host, move |conn| {
            let meter = meter.clone();
            async move { pump(conn.client, conn.upstream, Some(&meter)).await }
        })
    })
}

/// A listener and a proxy in front of it.
async fn pair() -> (TcpListener, Harness) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, raw(addr))
}

async fn connect(listener: &TcpListener, harness: &Harness) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(harness.addr).await.unwrap();
    let (server, _) = timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();
    (client, server)
}

/// Reads to the end; the error with which it ended, if it did.
async fn drain(stream: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut all = vec![];
    let end = timeout(DEADLINE, stream.read_to_end(&mut all))
        .await
        .expect("the stream must end");
    (all, end.err().map(|e| e.kind()))
}

#[tokio::test]
async fn half_close_and_bulk_pass_in_both_directions() {
    let (listener, harness) = pair().await;
    let (mut client, mut server) = connect(&listener, &harness).await;
    let sent: Vec<u8> = (0..8_000_000u32).map(|i| (i * 7) as u8).collect();
    let (upload, echo) = (sent.clone(), sent.clone());
    let serving = tokio::spawn(async move {
        let (got, end) = drain(&mut server).await;
        assert_eq!(end, None);
        assert!(got == echo);
        // The client has closed its side; ours is still open.
        server.write_all(&got).await.unwrap();
    });
    client.write_all(&upload).await.unwrap();
    client.shutdown().await.unwrap();
    let (got, end) = drain(&mut client).await;
    assert_eq!(end, None);
    assert!(got == sent);
    serving.await.unwrap();
    assert!(harness.meter.count() > 0);
}

#[tokio::test]
async fn a_server_may_speak_first_and_close_first() {
    let (listener, harness) = pair().await;
    let (mut client, mut server) = connect(&listener, &harness).await;
    server.write_all(b"220 ready\r\n").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(drain(&mut client).await, (b"220 ready\r\n".to_vec(), None));
    client.write_all(b"thanks").await.unwrap();
    drop(client);
    assert_eq!(drain(&mut server).await, (b"thanks".to_vec(), None));
}

#[tokio::test]
async fn a_reset_passes_as_a_reset_after_what_was_said_before_it() {
    let (listener, harness) = pair().await;
    let (mut client, mut server) = connect(&listener, &harness).await;
    server.write_all(b"partial").await.unwrap();
    let mut got = [0; 7];
    client.read_exact(&mut got).await.unwrap();
    reset(server);
    assert_eq!(drain(&mut client).await.1, Some(ErrorKind::ConnectionReset));

    let (client, mut server) = connect(&listener, &harness).await;
    reset(client);
    assert_eq!(drain(&mut server).await.1, Some(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_client_that_dies_while_the_server_is_not_reading_is_noticed() {
    let (listener, harness) = pair().await;
    let (client, mut server) = connect(&listener, &harness).await;
    // Fill every buffer on the way, so that the proxy is stuck writing.
    let chunk = vec![1u8; 1 << 20];
    let mut stuck = false;
    while !stuck {
        match timeout(Duration::from_millis(300), client.writable()).await {
            Err(_) => stuck = true,
            Ok(_) => {
                let _ = client.try_write(&chunk);
            }
        }
    }
    reset(client);
    assert_eq!(drain(&mut server).await.1, Some(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_dead_upstream_looks_dead() {
    let harness = raw(free_addr());
    // The kernel completes the handshake; then comes the reset.
    match TcpStream::connect(harness.addr).await {
        Ok(mut client) => assert_eq!(drain(&mut client).await.1, Some(ErrorKind::ConnectionReset)),
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
    }
    let failed = harness.events.of_kind("proxy_dial_failed");
    assert_eq!(failed.len(), 1);
    assert!(
        failed[0].fields["error"]
            .as_str()
            .unwrap()
            .contains("refused")
    );
}

#[tokio::test]
async fn ending_the_proxy_ends_its_connections() {
    let (listener, harness) = pair().await;
    let (mut client, mut server) = connect(&listener, &harness).await;
    drop(harness);
    drain(&mut client).await;
    drain(&mut server).await;
}
