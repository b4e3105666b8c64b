//! Connections are spread over the threads that a proxy is given, work on each, and end with the proxy.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use faultbox_contract::Lanes;
use faultbox_engine::testing::Harness;
use faultbox_engine::{pump, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(60);

/// A thread that drives a runtime until the end of the test's process.
fn thread(name: &str) -> Handle {
    let (tell, told) = mpsc::channel();
    let drive = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        tell.send(runtime.handle().clone()).unwrap();
        runtime.block_on(std::future::pending::<()>());
    };
    let named = std::thread::Builder::new().name(name.to_owned());
    named.spawn(drive).unwrap();
    told.recv().unwrap()
}

#[tokio::test]
async fn connections_spread_over_threads_and_end_with_the_proxy() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let seen: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let names = seen.clone();
    let (tell, told) = mpsc::channel();
    let harness = Harness::run(upstream.local_addr().unwrap(), move |mut host| {
        host.lanes = Lanes::new(["lane-a", "lane-b", "lane-c"].map(thread)).homed(1);
        let home = host.lanes.home().unwrap().clone();
        let served = serve(host, move |conn| {
            let here = std::thread::current().name().unwrap_or("?").to_owned();
            let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
            *names.entry(here).or_default() += 1;
            drop(names);
            pump(conn.client, conn.upstream, None)
        });
        // As a run does, and not on this test's own runtime.
        tell.send(home.spawn(served).abort_handle()).unwrap();
        std::future::ready(())
    });
    let mut pairs = vec![];
    for _ in 0..9 {
        let client = TcpStream::connect(harness.addr).await.unwrap();
        let (server, _) = timeout(DEADLINE, upstream.accept()).await.unwrap().unwrap();
        pairs.push((client, server));
    }
    for (client, server) in &mut pairs {
        let mut got = [0; 4];
        client.write_all(b"ping").await.unwrap();
        server.read_exact(&mut got).await.unwrap();
        server.write_all(&got).await.unwrap();
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ping");
    }
    let expected = ["lane-a", "lane-b", "lane-c"].map(|name| (name.to_owned(), 3));
    let spread = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert_eq!(spread, BTreeMap::from(expected));

    told.recv().unwrap().abort();
    for (client, server) in &mut pairs {
        for side in [client, server] {
            let end = timeout(DEADLINE, side.read(&mut [0; 4])).await.unwrap();
            assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        }
    }
}
