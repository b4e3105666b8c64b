//! The messages of gRPC server reflection, v1 and v1alpha, as far as they are used (`grpc/reflection/v1/reflection.proto`).

use prost::Message;

/// ServerReflectionRequest.
#[derive(Clone, PartialEq, Message)]
pub struct Question {
    /// The host that is asked about; servers with several look at it.
    #[prost(string, tag = "1")]
    pub host: String,
    /// The file of this name.
    #[prost(string, optional, tag = "3")]
    pub file_by_filename: Option<String>,
    /// The file that declares this service, method or type.
    #[prost(string, optional, tag = "4")]
    pub file_containing_symbol: Option<String>,
    /// All services, whatever the text.
    #[prost(string, optional, tag = "7")]
    pub list_services: Option<String>,
}

/// ServerReflectionResponse.
#[derive(Clone, PartialEq, Message)]
pub struct Answer {
    /// The host that was asked about.
    #[prost(string, tag = "1")]
    pub valid_host: String,
    /// The question.
    #[prost(message, optional, tag = "2")]
    pub original_request: Option<Question>,
    /// Files, the one that was asked for first.
    #[prost(message, optional, tag = "4")]
    pub files: Option<Files>,
    /// All services.
    #[prost(message, optional, tag = "6")]
    pub services: Option<Services>,
    /// Why there is no answer.
    #[prost(message, optional, tag = "7")]
    pub error: Option<Refusal>,
}

/// FileDescriptorResponse.
#[derive(Clone, PartialEq, Message)]
pub struct Files {
    /// FileDescriptorProto messages (descriptor.proto).
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub file_descriptor_proto: Vec<Vec<u8>>,
}

/// ListServiceResponse.
#[derive(Clone, PartialEq, Message)]
pub struct Services {
    /// Each of them.
    #[prost(message, repeated, tag = "1")]
    pub service: Vec<Service>,
}

/// ServiceResponse.
#[derive(Clone, PartialEq, Message)]
pub struct Service {
    /// The full name.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// ErrorResponse.
#[derive(Clone, PartialEq, Message)]
pub struct Refusal {
    /// A gRPC status code.
    #[prost(int32, tag = "1")]
    pub error_code: i32,
    /// In words.
    #[prost(string, tag = "2")]
    pub error_message: String,
}
