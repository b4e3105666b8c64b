//! Server reflection (`grpc/reflection/v1/reflection.proto`), as far as it tells which messages a symbol takes.

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, MethodDescriptorProto,
    ServiceDescriptorProto,
};

use crate::{Call, Status};

#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(string, optional, tag = "3")]
    file_by_filename: Option<String>,
    #[prost(string, optional, tag = "4")]
    file_containing_symbol: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, optional, tag = "2")]
    original_request: Option<Question>,
    #[prost(message, optional, tag = "4")]
    files: Option<Files>,
    #[prost(message, optional, tag = "7")]
    error: Option<Refusal>,
}

#[derive(Clone, PartialEq, Message)]
struct Files {
    #[prost(bytes = "vec", repeated, tag = "1")]
    file_descriptor_proto: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Refusal {
    #[prost(int32, tag = "1")]
    error_code: i32,
    #[prost(string, tag = "2")]
    error_message: String,
}

const FILE: &str = "orders.proto";

/// Answers questions until the client has no more.
pub async fn call(call: &mut Call) -> Result<(), Status> {
    while let Some(question) = call.next::<Question>().await? {
        let ours = match (&question.file_by_filename, &question.file_containing_symbol) {
            (Some(name), _) => name == FILE,
            (_, Some(symbol)) => symbol.starts_with("orders."),
            _ => false,
        };
        let mut answer = Answer {
            original_request: Some(question),
            ..Answer::default()
        };
        if ours {
            answer.files = Some(Files {
                file_descriptor_proto: vec![file().encode_to_vec()],
            });
        } else {
            answer.error = Some(Refusal {
                error_code: 5,
                error_message: "no such symbol".into(),
            });
        }
        call.say(&answer).await?;
    }
    Ok(())
}

/// The file that `orders.rs` would be generated from.
fn file() -> FileDescriptorProto {
    let message = |name: &str, fields: &[(&str, Type)]| DescriptorProto {
        name: Some(name.into()),
        field: fields
            .iter()
            .zip(1..)
            .map(|((name, kind), number)| FieldDescriptorProto {
                name: Some((*name).into()),
                number: Some(number),
                label: Some(Label::Optional as i32),
                r#type: Some(*kind as i32),
                ..FieldDescriptorProto::default()
            })
            .collect(),
        ..DescriptorProto::default()
    };
    let method = |name: &str, input: (&str, bool), output: (&str, bool)| MethodDescriptorProto {
        name: Some(name.into()),
        input_type: Some(format!(".orders.{}", input.0)),
        client_streaming: Some(input.1),
        output_type: Some(format!(".orders.{}", output.0)),
        server_streaming: Some(output.1),
        ..MethodDescriptorProto::default()
    };
    FileDescriptorProto {
        name: Some(FILE.into()),
        package: Some("orders".into()),
        syntax: Some("proto3".into()),
        message_type: vec![
            message(
                "Order",
                &[
                    ("id", Type::Int64),
                    ("item", Type::String),
                    ("quantity", Type::Int32),
                ],
            ),
            message("Query", &[("id", Type::Int64), ("count", Type::Int32)]),
            message("Count", &[("count", Type::Int32)]),
        ],
        service: vec![ServiceDescriptorProto {
            name: Some("OrderService".into()),
            method: vec![
                method("Create", ("Order", false), ("Order", false)),
                method("Get", ("Query", false), ("Order", false)),
                method("Watch", ("Query", false), ("Order", true)),
                method("Import", ("Order", true), ("Count", false)),
                method("Exchange", ("Order", true), ("Order", true)),
            ],
            ..ServiceDescriptorProto::default()
        }],
        ..FileDescriptorProto::default()
    }
}
