//! google.rpc's standard error details (`google/rpc/error_details.proto`), from JSON to the bytes of grpc-status-details-bin.

use std::sync::LazyLock;

use faultbox_contract::ArgError;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto, MessageOptions};
use serde_json::{Value, json};

/// A field: its name, and what it holds. Numbers follow the order, as they do in all of these messages.
type Fields = &'static [(&'static str, Holds)];

/// What a field holds.
#[derive(Clone, Copy)]
enum Holds {
    Text,
    Int,
    Texts,
    /// A map of text to text.
    Map,
    /// Another message, by its full name.
    One(&'static str),
    Many(&'static str),
    /// Messages that are declared within this one: name and fields.
    Own(&'static str, Fields),
}

use Holds::{Int, Many, Map, One, Own, Text, Texts};

const MESSAGES: &[(&str, Fields)] = &[
    (
        "Status",
        &[
            ("code", Int),
            ("message", Text),
            ("details", Many(".google.protobuf.Any")),
        ],
    ),
    (
        "ErrorInfo",
        &[("reason", Text), ("domain", Text), ("metadata", Map)],
    ),
    (
        "RetryInfo",
        &[("retry_delay", One(".google.protobuf.Duration"))],
    ),
    ("DebugInfo", &[("stack_entries", Texts), ("detail", Text)]),
    (
        "QuotaFailure",
        &[(
            "violations",
            Own("Violation", &[("subject", Text), ("description", Text)]),
        )],
    ),
    (
        "PreconditionFailure",
        &[(
            "violations",
            Own(
                "Violation",
                &[("type", Text), ("subject", Text), ("description", Text)],
            ),
        )],
    ),
    (
        "BadRequest",
        &[(
            "field_violations",
            Own("FieldViolation", &[("field", Text), ("description", Text)]),
        )],
    ),
    (
        "RequestInfo",
        &[("request_id", Text), ("serving_data", Text)],
    ),
    (
        "ResourceInfo",
        &[
            ("resource_type", Text),
            ("resource_name", Text),
            ("owner", Text),
            ("description", Text),
        ],
    ),
    (
        "Help",
        &[(
            "links",
            Own("Link", &[("description", Text), ("url", Text)]),
        )],
    ),
    ("LocalizedMessage", &[("locale", Text), ("message", Text)]),
];

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let file = FileDescriptorProto {
        name: Some("google/rpc/error_details.proto".into()),
        package: Some("google.rpc".into()),
        syntax: Some("proto3".into()),
        dependency: vec![
            "google/protobuf/any.proto".into(),
            "google/protobuf/duration.proto".into(),
        ],
        message_type: MESSAGES
            .iter()
            .map(|(name, fields)| message(".google.rpc", name, fields))
            .collect(),
        ..FileDescriptorProto::default()
    };
    let mut pool = DescriptorPool::global();
    pool.add_file_descriptor_proto(file)
        .expect("the table above is a valid file, as a test shows");
    pool
});

fn message(scope: &str, name: &str, fields: Fields) -> DescriptorProto {
    let scope = format!("{scope}.{name}");
    let mut nested = vec![];
    let field = fields
        .iter()
        .zip(1..)
        .map(|((field, holds), number)| {
            let (kind, type_name, many) = match holds {
                Text => (Type::String, None, false),
                Texts => (Type::String, None, true),
                Int => (Type::Int32, None, false),
                One(name) => (Type::Message, Some((*name).to_owned()), false),
                Many(name) => (Type::Message, Some((*name).to_owned()), true),
                Own(name, fields) => {
                    nested.push(message(&scope, name, fields));
                    (Type::Message, Some(format!("{scope}.{name}")), true)
                }
                Map => {
                    let mut entry =
                        message(&scope, "MetadataEntry", &[("key", Text), ("value", Text)]);
                    entry.options = Some(MessageOptions {
                        map_entry: Some(true),
                        ..MessageOptions::default()
                    });
                    nested.push(entry);
                    (Type::Message, Some(format!("{scope}.MetadataEntry")), true)
                }
            };
            FieldDescriptorProto {
                name: Some((*field).to_owned()),
                number: Some(number),
                label: Some(if many {
                    Label::Repeated
                } else {
                    Label::Optional
                } as i32),
                r#type: Some(kind as i32),
                type_name,
                ..FieldDescriptorProto::default()
            }
        })
        .collect();
    DescriptorProto {
        name: Some(name.into()),
        field,
        nested_type: nested,
        ..DescriptorProto::default()
    }
}

/// A google.rpc.Status with these details, each a dict with its "@type" beside its fields, as protobuf's JSON has it.
///
/// # Errors
/// A type that is none of the standard ones, or fields that it does not have.
pub fn encode(code: u32, text: &str, details: &[Value]) -> Result<Vec<u8>, ArgError> {
    let known = MESSAGES[1..]
        .iter()
        .map(|(name, _)| format!("google.rpc.{name}"))
        .collect::<Vec<_>>()
        .join(", ");
    let mut named = details.to_vec();
    for detail in &mut named {
        let Some(kind) = detail.get("@type").and_then(Value::as_str) else {
            return Err(
                ArgError::new("details", "`details`: each is a dict with an \"@type\"")
                    .hint(format!("the types are {known}")),
            );
        };
        let bare = kind.rsplit('/').next().unwrap_or(kind);
        detail["@type"] = format!("type.googleapis.com/{bare}").into();
    }
    let status = POOL
        .get_message_by_name("google.rpc.Status")
        .expect("the pool holds the table above");
    let whole = json!({"code": code, "message": text, "details": named});
    DynamicMessage::deserialize(status, whole)
        .map(|message| message.encode_to_vec())
        .map_err(|e| {
            ArgError::new("details", format!("`details`: {e}"))
                .hint(format!("the types are {known}"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_can_be_encoded() {
        let details = [
            json!({"@type": "google.rpc.RetryInfo", "retryDelay": "1.5s"}),
            json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "R", "domain": "d", "metadata": {"k": "v"}}),
            json!({"@type": "google.rpc.DebugInfo", "stackEntries": ["a", "b"]}),
            json!({"@type": "google.rpc.QuotaFailure", "violations": [{"subject": "s"}]}),
            json!({"@type": "google.rpc.PreconditionFailure", "violations": [{"type": "t"}]}),
            json!({"@type": "google.rpc.BadRequest", "fieldViolations": [{"field": "f", "description": "d"}]}),
            json!({"@type": "google.rpc.RequestInfo", "requestId": "1"}),
            json!({"@type": "google.rpc.ResourceInfo", "resourceType": "t"}),
            json!({"@type": "google.rpc.Help", "links": [{"url": "u"}]}),
            json!({"@type": "google.rpc.LocalizedMessage", "locale": "de", "message": "voll"}),
        ];
        let bytes = encode(14, "gone", &details).unwrap();
        // code = 14, message = "gone": protobuf's own encoding.
        assert!(bytes.starts_with(b"\x08\x0e\x12\x04gone\x1a"));
        // RetryInfo's duration: seconds = 1, nanos = 500 000 000.
        let delay = b"\x0a\x08\x08\x01\x10\x80\xca\xb5\xee\x01";
        assert!(bytes.windows(delay.len()).any(|w| w == delay));
    }

    #[test]
    fn what_is_no_detail_is_refused() {
        for bad in [
            json!({"retryDelay": "1s"}),
            json!("x"),
            json!({"@type": "google.rpc.Nonsense"}),
            json!({"@type": "google.rpc.RetryInfo", "delay": "1s"}),
        ] {
            let refused = encode(14, "", std::slice::from_ref(&bad)).unwrap_err();
            assert!(
                refused.hint.unwrap().contains("google.rpc.RetryInfo"),
                "{bad}"
            );
        }
    }
}
