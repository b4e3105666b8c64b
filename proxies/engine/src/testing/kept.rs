//! A caller that goes on calling, against a real server of SQL.

use std::time::{Duration, Instant};

use faultbox_contract::{Arg, Endpoint, Kept, Protocol, Response};
use serde_json::{Value, json};

use super::PATIENCE;

/// Whose SQL the server speaks.
#[derive(Debug, Clone, Copy)]
pub struct Session<'a> {
    /// A query for the session's number, as `id`.
    pub id: &'a str,
    /// A statement that leaves the session other than it found it.
    pub change: &'a str,
    /// A statement that ends the session `$ID`.
    pub end: &'a str,
    /// A query for how many sessions `$ID` there are, as `n`.
    pub count: &'a str,
}

/// A caller uses its connection again, unless a step failed, left the session other than it found it, or the connection is gone.
///
/// # Panics
/// It is not so.
pub async fn caller_keeps_its_session(
    protocol: &dyn Protocol,
    server: Endpoint,
    session: Session<'_>,
) {
    let caller = Endpoint {
        kept: Some(Kept::default()),
        ..server.clone()
    };
    let first = id(protocol, &caller, session).await;
    protocol
        .ready(caller.clone())
        .await
        .expect("the server is ready");
    assert_eq!(id(protocol, &caller, session).await, first);
    let changed = step(protocol, &caller, "exec", session.change).await;
    assert!(changed.ok, "{changed:?}");
    let second = id(protocol, &caller, session).await;
    assert_ne!(second, first);
    let failed = step(protocol, &caller, "query", "SELECT no_such_column").await;
    assert!(!failed.ok, "{failed:?}");
    let third = id(protocol, &caller, session).await;
    assert_ne!(third, second);

    let of_third = |sql: &str| sql.replace("$ID", &third.to_string());
    let ended = step(protocol, &server, "query", &of_third(session.end)).await;
    assert!(ended.ok, "{ended:?}");
    let deadline = Instant::now() + PATIENCE;
    let count = of_third(session.count);
    while step(protocol, &server, "query", &count).await.data[0]["n"] != json!(0) {
        assert!(Instant::now() < deadline, "the server still has it");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_ne!(id(protocol, &caller, session).await, third);
}

async fn step(protocol: &dyn Protocol, endpoint: &Endpoint, name: &str, sql: &str) -> Response {
    let call = protocol
        .doc()
        .check_step(name, vec![Arg::Str(sql.into())], vec![])
        .expect("the protocol has this step");
    protocol
        .step(endpoint.clone(), call)
        .await
        .expect("the step is well formed")
}

async fn id(protocol: &dyn Protocol, caller: &Endpoint, session: Session<'_>) -> Value {
    let response = step(protocol, caller, "query", session.id).await;
    assert!(response.ok, "{response:?}");
    response.data[0]["id"].clone()
}
