//! A toy fleet and a host that writes down what a spec asks of it.
#![allow(dead_code, missing_docs)]

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use faultbox::events::EventLog;
use faultbox::plan::report::Blame;
use faultbox::plan::{FaultPart, FaultSet};
use faultbox::spec::{ArmId, Host, HostError, ProcessFault};
use faultbox_contract::doc::{Class, common};
use faultbox_contract::{
    ActionDoc, ArgError, BoxFuture, CheckedRule, CheckedStep, Dialect, Endpoint, Kind, ParamDoc,
    Protocol, ProtocolDoc, ProxyHost, Response, StepDoc,
};

pub struct Toy(&'static ProtocolDoc);

impl Protocol for Toy {
    fn doc(&self) -> &'static ProtocolDoc {
        self.0
    }
    fn compile(&self, rule: &CheckedRule) -> Result<Arc<dyn Any + Send + Sync>, ArgError> {
        match rule.text_of("code") {
            Some("99999") => Err(ArgError::new("code", "`code`: 99999 is no SQLSTATE")
                .hint("a SQLSTATE has five characters of a known class")),
            _ => Ok(Arc::new(())),
        }
    }
    fn serve(&self, _: ProxyHost) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
    fn step(&self, _: Endpoint, _: CheckedStep) -> BoxFuture<'static, Result<Response, ArgError>> {
        Box::pin(async { Ok(Response::default()) })
    }
    fn ready(&self, _: Endpoint) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

const TIMEOUT: ParamDoc = ParamDoc::opt("timeout", Kind::Duration, "how long it may take");
const HTTP_PARAMS: &[ParamDoc] = &[
    ParamDoc::req("path", Kind::Text, "the request's path"),
    ParamDoc::opt("body", Kind::Body, "the request's body"),
    ParamDoc::opt("headers", Kind::TextMap, "more headers"),
    TIMEOUT,
];

const fn http_step(name: &'static str) -> StepDoc {
    StepDoc {
        name,
        params: HTTP_PARAMS,
        variadic: false,
        summary: "",
    }
}

static HTTP: ProtocolDoc = ProtocolDoc {
    name: "http",
    aliases: &["http1"],
    summary: "HTTP",
    matchers: &[
        ParamDoc::opt("method", Kind::Glob(Dialect::TextNoCase), ""),
        ParamDoc::opt("path", Kind::Glob(Dialect::HttpPath), ""),
    ],
    actions: &[
        ActionDoc {
            name: "error",
            class: Class::Terminal,
            matched: true,
            params: &[ParamDoc::opt("status", Kind::Int(100, 999), "")],
            summary: "",
        },
        ActionDoc {
            name: "response",
            class: Class::Terminal,
            matched: true,
            params: &[
                ParamDoc::opt("status", Kind::Int(100, 999), ""),
                ParamDoc::opt("headers", Kind::TextMap, ""),
                ParamDoc::opt("json", Kind::Json, ""),
            ],
            summary: "",
        },
        ActionDoc {
            name: "drop",
            class: Class::Terminal,
            matched: true,
            params: &[],
            summary: "",
        },
        common::DELAY,
        common::RESET,
    ],
    steps: &[http_step("get"), http_step("post"), http_step("delete")],
};

static POSTGRES: ProtocolDoc = ProtocolDoc {
    name: "postgres",
    aliases: &["postgresql"],
    summary: "PostgreSQL",
    matchers: &[ParamDoc::opt("query", Kind::Glob(Dialect::TextNoCase), "")],
    actions: &[
        ActionDoc {
            name: "error",
            class: Class::Terminal,
            matched: true,
            params: &[
                ParamDoc::opt("code", Kind::Code, ""),
                ParamDoc::opt("message", Kind::Text, ""),
            ],
            summary: "",
        },
        ActionDoc {
            name: "drop",
            class: Class::Terminal,
            matched: true,
            params: &[],
            summary: "",
        },
        common::DELAY,
    ],
    steps: &[
        StepDoc {
            name: "query",
            params: &[
                ParamDoc::req("sql", Kind::Text, "one statement"),
                ParamDoc::opt("params", Kind::List, "its parameters"),
            ],
            variadic: false,
            summary: "",
        },
        StepDoc {
            name: "exec",
            params: &[ParamDoc::req("sql", Kind::Text, "one statement")],
            variadic: false,
            summary: "",
        },
    ],
};

static TCP: ProtocolDoc = ProtocolDoc {
    name: "tcp",
    aliases: &[],
    summary: "TCP",
    matchers: &[],
    actions: &[common::RESET, common::DELAY],
    steps: &[StepDoc {
        name: "send",
        params: &[ParamDoc::req("data", Kind::Bytes, "what is sent")],
        variadic: false,
        summary: "",
    }],
};

static FLEET: [Toy; 3] = [Toy(&HTTP), Toy(&POSTGRES), Toy(&TCP)];

/// A fleet whose tables do not change when the real ones do.
pub fn toys() -> Vec<&'static dyn Protocol> {
    FLEET.iter().map(|t| t as &dyn Protocol).collect()
}

/// Writes down every call, and answers steps from a script.
#[derive(Default)]
pub struct Recorder {
    calls: Mutex<Vec<String>>,
    names: Mutex<HashMap<u64, String>>,
    next: AtomicU64,
    log: EventLog,
    replies: Mutex<HashMap<String, Response>>,
    /// Steps whose path is "/meet" wait until this many of them are in flight.
    meeting: usize,
    met: Mutex<usize>,
    arrived: Condvar,
}

impl Recorder {
    /// One whose "/meet" steps wait for each other.
    pub fn meeting(count: usize) -> Recorder {
        Recorder {
            meeting: count,
            ..Recorder::default()
        }
    }

    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    pub fn reply(&self, when: &str, response: Response) {
        self.replies
            .lock()
            .unwrap()
            .insert(when.to_owned(), response);
    }

    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }
}

pub fn show(fault: &FaultSet) -> String {
    let parts: Vec<String> = fault
        .parts
        .iter()
        .map(|p| match p {
            FaultPart::Syscall { service, rule, .. } => format!("{service}: {}", rule.text),
            FaultPart::Cut { rule, .. } => rule.text.clone(),
            FaultPart::Protocol {
                service,
                interface,
                rule,
                ..
            } => format!("{service}.{interface}: {}", rule.text),
        })
        .collect();
    format!("{} [{}]", fault.name, parts.join("; "))
}

impl Host for Recorder {
    /// Of the kernel's events it has those that the test has recorded.
    fn observes(&self, kind: &str) -> Result<(), HostError> {
        match self.log.since(0).any(|event| event.kind == kind) {
            true => Ok(()),
            false => Err(HostError {
                message: "no eBPF".into(),
                help: None,
                blame: Blame::Environment,
            }),
        }
    }

    fn arm(&self, fault: &FaultSet) -> Result<ArmId, HostError> {
        if fault.name == "refused" {
            return Err(HostError {
                message: "ptrace is refused".into(),
                help: Some("run as root".into()),
                blame: Blame::Environment,
            });
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.names.lock().unwrap().insert(id, fault.name.clone());
        self.note(format!("arm {}", show(fault)));
        Ok(ArmId(id))
    }
    fn lift(&self, id: ArmId) {
        let name = self.names.lock().unwrap()[&id.0].clone();
        self.note(format!("lift {name}"));
    }
    fn hits(&self, id: ArmId) -> u64 {
        id.0 * 10
    }
    fn step(
        &self,
        service: &str,
        interface: &str,
        call: CheckedStep,
    ) -> Result<Response, HostError> {
        let args: Vec<String> = call
            .args
            .iter()
            .map(|(n, a)| format!("{n}={}", a.to_json()))
            .collect();
        let text = format!(
            "{service}.{interface}.{}({})",
            call.step.name,
            args.join(", ")
        );
        self.note(text.clone());
        self.log.record(
            "step",
            Some(service),
            serde_json::json!({"method": call.step.name, "status": 1}),
        );
        if call.text_of("path") == Some("/meet") {
            let mut met = self.met.lock().unwrap();
            *met += 1;
            self.arrived.notify_all();
            let (_met, timeout) = self
                .arrived
                .wait_timeout_while(met, Duration::from_secs(20), |met| *met < self.meeting)
                .unwrap();
            assert!(!timeout.timed_out(), "the branches do not overlap");
        }
        let replies = self.replies.lock().unwrap();
        Ok(replies
            .iter()
            .find(|(when, _)| text.contains(when.as_str()))
            .map(|(_, r)| r.clone())
            .unwrap_or(Response {
                ok: true,
                status: 200,
                body: "hello".into(),
                data: serde_json::json!({"id": 7}),
                duration: Duration::from_millis(3),
                ..Response::default()
            }))
    }
    fn process(&self, service: &str, what: ProcessFault) -> Result<(), HostError> {
        self.note(format!("{what:?} {service}"));
        Ok(())
    }
    fn pid(&self, service: &str) -> Option<i32> {
        (service == "db").then_some(4242)
    }
    fn events(&self) -> &EventLog {
        &self.log
    }
}
