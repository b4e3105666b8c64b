//! The steps of specs: one request or call on a connection of its own.

mod client;
mod grpc;
mod plain;
mod reflection;

use faultbox_contract::{Kind, ParamDoc, StepDoc};

pub use grpc::{call, ready as ready_grpc};
pub use plain::{ready as ready_http2, request};
pub use reflection::AGENT as REFLECTION_AGENT;

const PARAMS: &[ParamDoc] = &[
    ParamDoc::opt(
        "path",
        Kind::Text,
        "the path, with or without a query string (default \"/\")",
    ),
    ParamDoc::opt(
        "body",
        Kind::Body,
        "the body; a dict or a list is sent as JSON",
    ),
    ParamDoc::opt("json", Kind::Json, "a body to be sent as JSON"),
    ParamDoc::opt("headers", Kind::TextMap, "header fields of the request"),
    ParamDoc::opt(
        "query",
        Kind::TextMap,
        "parameters, percent-encoded and added to the path",
    ),
    TIMEOUT,
];

const TIMEOUT: ParamDoc = ParamDoc::opt(
    "timeout",
    Kind::Duration,
    "the longest to wait for the whole reply (default 30s)",
);

const fn doc(name: &'static str, summary: &'static str) -> StepDoc {
    StepDoc {
        name,
        params: PARAMS,
        variadic: false,
        summary,
    }
}

/// The table of `http2`.
pub const HTTP2_DOCS: &[StepDoc] = &[
    doc(
        "get",
        "GET; `.data` is the body, decoded if it is JSON; redirects are not followed",
    ),
    doc("post", "POST; as get"),
    doc("put", "PUT; as get"),
    doc("delete", "DELETE; as get"),
    doc("patch", "PATCH; as get"),
    doc("head", "HEAD; the reply has no body"),
    doc("options", "OPTIONS; as get"),
];

/// The table of `grpc`.
pub const GRPC_DOCS: &[StepDoc] = &[StepDoc {
    name: "call",
    params: &[
        ParamDoc::req("method", Kind::Text, "the full method, \"/pkg.Svc/Method\""),
        ParamDoc::opt(
            "body",
            Kind::Json,
            "the request as protobuf's JSON; a list of them for client streaming (default {})",
        ),
        ParamDoc::opt(
            "descriptors",
            Kind::File,
            "a file from `protoc --descriptor_set_out --include_imports` (default: ask the server by reflection)",
        ),
        ParamDoc::opt(
            "metadata",
            Kind::TextMap,
            "metadata; values of `-bin` names are base64",
        ),
        TIMEOUT,
    ],
    variadic: false,
    summary: "one call; `.data` is the reply as a dict, for server streaming a list; `.status` the code's number, `.code` its name",
}];
