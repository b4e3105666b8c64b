//! Many calls at once on few connections, some of them faulted in every way there is: each gets exactly what its own rule says, and
//! all others are answered as without a proxy. Header tables, stream numbers and windows that go wrong show up here.

mod support;

use std::sync::Arc;
use std::time::Duration;

use faultbox_contract::Arg;
use h2::Reason;
use support::{Client, Lab, int, text};

const CALLS: usize = 250;

/// A generator of its own (xorshift), so that a failure can be had again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides
    }
}

fn arm(lab: &Lab) {
    let ms = |ms| Arg::Duration(Duration::from_millis(ms));
    let method = |name: &str| ("method", text(&format!("/crowd.Svc/{name}")));
    let arm = |action: &str, args: &[(&str, Arg)]| lab.proxy.arm(action, args);
    arm("error", &[method("Error")]);
    arm("error", &[method("Late"), ("code", text("ABORTED"))]);
    arm("delay", &[method("Late"), ("delay", ms(7))]);
    arm("delay", &[method("Delay"), ("delay", ms(5))]);
    arm("drop", &[method("Drop"), ("rst", text("REFUSED_STREAM"))]);
    arm(
        "response",
        &[
            method("Plain"),
            ("status", int(503)),
            ("body", text(&"z".repeat(20_000))),
        ],
    );
    arm(
        "response",
        &[
            method("After"),
            ("status", int(429)),
            ("body", text("slow down")),
            ("when", text("after")),
        ],
    );
    arm("throttle", &[method("Throttle"), ("rate", text("2MB/s"))]);
    arm("truncate", &[method("Cut"), ("bytes", int(100))]);
    arm(
        "error",
        &[
            method("Middle"),
            ("messages", int(2)),
            ("code", text("DATA_LOSS")),
        ],
    );
    arm(
        "delay",
        &[method("Pause"), ("messages", int(1)), ("delay", ms(3))],
    );
}

const METHODS: [&str; 13] = [
    "Error", "Late", "Delay", "Drop", "Plain", "After", "Throttle", "Cut", "Middle", "Pause",
    "Fine", "Fine", "Fine",
];

/// One call, and what must come of it.
async fn call(client: &Client, dice: &mut Dice) {
    let name = METHODS[dice.roll(METHODS.len())];
    let path = format!("/crowd.Svc/{name}");
    // Some values come again, and stand in the tables then; some never do.
    let sent = match dice.roll(3) {
        0 => format!("often {}", dice.roll(5)),
        1 => format!("once {}", dice.roll(usize::MAX)),
        _ => "v".repeat(dice.roll(3000)),
    };
    let body = vec![dice.roll(256) as u8; 200 + dice.roll(30_000)];
    let reason = |e: &h2::Error| e.reason();
    match name {
        "Middle" | "Pause" => {
            let reply = client.fan_out(&path, &body, 5).await.unwrap();
            let (code, count) = if name == "Middle" {
                ("15", 2)
            } else {
                ("0", 5)
            };
            assert_eq!(
                (reply.code(), reply.messages().len()),
                (code, count),
                "{name}"
            );
            assert!(reply.messages().iter().all(|m| *m == body));
        }
        "Drop" => {
            let e = client.call_with(&path, &body, &sent).await.unwrap_err();
            assert_eq!(reason(&e), Some(Reason::REFUSED_STREAM), "{e:?}");
        }
        "Cut" => {
            let (e, got) = client.cut(&path, &body).await;
            assert_eq!((reason(&e), got), (Some(Reason::INTERNAL_ERROR), 100));
        }
        _ => {
            let reply = client.call_with(&path, &body, &sent).await;
            let reply = reply.unwrap_or_else(|e| panic!("{name}: {e:?}"));
            match name {
                "Error" => assert_eq!(reply.code(), "14"),
                "Late" => assert_eq!(reply.code(), "10"),
                "Plain" => assert_eq!((reply.status, reply.body.len()), (503, 20_000)),
                "After" => assert_eq!((reply.status, &reply.body[..]), (429, &b"slow down"[..])),
                _ => {
                    assert_eq!((reply.status, reply.code()), (200, "0"), "{name}");
                    assert_eq!(reply.header("x-path"), path);
                    assert_eq!(reply.header("x-echo"), sent.trim());
                    assert!(reply.messages() == [&body[..]], "{name}");
                }
            }
        }
    }
}

/// Runs the crowd on so many connections, with rules that come and go meanwhile.
async fn crowd(connections: usize, at_once: usize, seed: u64) {
    let lab = Arc::new(Lab::grpc().await);
    let clients: Vec<Arc<Client>> = {
        let mut clients = vec![];
        for _ in 0..connections {
            clients.push(Arc::new(lab.client().await));
        }
        clients
    };
    for client in &clients {
        client
            .call("/crowd.Svc/Fine", &[b"before any rule"], true)
            .await
            .unwrap();
    }
    arm(&lab);
    let tasks: Vec<_> = (0..at_once)
        .map(|n| {
            let client = clients[n % connections].clone();
            let mut dice = Dice(seed * 1000 + n as u64 + 1);
            tokio::spawn(async move {
                for _ in 0..CALLS / at_once {
                    call(&client, &mut dice).await;
                }
            })
        })
        .collect();
    let all = async {
        for task in tasks {
            task.await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(120), all)
        .await
        .expect("nothing hangs");
    assert_eq!(lab.proxy.degradations(), Vec::<String>::new());
    for rule in lab.proxy.rules.load().iter() {
        lab.proxy.rules.lift(rule.id);
    }
    for client in &clients {
        let body = vec![3; 1 << 20];
        let reply = client
            .call("/crowd.Svc/Error", &[&body], true)
            .await
            .unwrap();
        assert!(reply.messages() == [&body[..]]);
    }
}

#[tokio::test]
async fn one_after_another() {
    crowd(1, 1, 1).await;
}

#[tokio::test]
async fn many_at_once_on_one_connection() {
    for seed in 2..6 {
        crowd(1, 25, seed).await;
    }
}

#[tokio::test]
async fn many_at_once_on_several_connections() {
    crowd(4, 50, 6).await;
}
