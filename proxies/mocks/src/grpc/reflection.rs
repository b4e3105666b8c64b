//! Server reflection, v1 and v1alpha (`grpc/reflection/v1/reflection.proto`): what the descriptor set has.

use std::collections::BTreeMap;

use faultbox_http2::reflection::{Answer, Files, Question, Refusal, Service, Services};
use prost::Message;
use prost_reflect::{DescriptorPool, FileDescriptor};

/// Is it reflection's method?
pub(super) fn is_reflection(path: &str) -> bool {
    matches!(
        path,
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
            | "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
}

/// The answer to one question; `None` if it is none.
pub(super) fn answer(pool: &DescriptorPool, question: &[u8]) -> Option<Vec<u8>> {
    let question = Question::decode(question).ok()?;
    let mut answer = Answer {
        valid_host: question.host.clone(),
        original_request: Some(question.clone()),
        ..Answer::default()
    };
    let file = match (&question.file_by_filename, &question.file_containing_symbol) {
        (Some(name), _) => pool.get_file_by_name(name),
        (None, Some(symbol)) => file_of(pool, symbol),
        (None, None) => None,
    };
    if question.list_services.is_some() {
        let names = pool.services().map(|s| Service {
            name: s.full_name().to_owned(),
        });
        answer.services = Some(Services {
            service: names.collect(),
        });
    } else if let Some(file) = file {
        let mut files = BTreeMap::new();
        gather(&file, &mut files);
        // The one that was asked for comes first.
        let first = files.remove(file.name());
        answer.files = Some(Files {
            file_descriptor_proto: first.into_iter().chain(files.into_values()).collect(),
        });
    } else {
        answer.error = Some(Refusal {
            // NOT_FOUND.
            error_code: 5,
            error_message: "the mock's descriptors do not have it".into(),
        });
    }
    Some(answer.encode_to_vec())
}

fn file_of(pool: &DescriptorPool, symbol: &str) -> Option<FileDescriptor> {
    let service = |name: &str| pool.get_service_by_name(name).map(|s| s.parent_file());
    service(symbol)
        .or_else(|| pool.get_message_by_name(symbol).map(|m| m.parent_file()))
        .or_else(|| pool.get_enum_by_name(symbol).map(|e| e.parent_file()))
        // A method.
        .or_else(|| service(symbol.rsplit_once('.')?.0))
}

/// A file and all that it imports.
fn gather(file: &FileDescriptor, into: &mut BTreeMap<String, Vec<u8>>) {
    if into.contains_key(file.name()) {
        return;
    }
    let bytes = file.file_descriptor_proto().encode_to_vec();
    into.insert(file.name().to_owned(), bytes);
    for import in file.dependencies() {
        gather(&import, into);
    }
}
