//! Asking a server what its methods take: gRPC server reflection, v1 and v1alpha.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{LazyLock, Mutex, PoisonError};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use faultbox_contract::Endpoint;
use h2::{RecvStream, SendStream};
use prost::Message;
use prost_reflect::DescriptorPool;
use prost_types::FileDescriptorProto;

use super::client::{Broken, connected, next_chunk};
use super::plain::build;
use crate::reflection::{Answer, Question};

/// By this the proxies tell a step's own question from a service's: no rule sees it, or it would use up the counters of rules.
pub const AGENT: &str = "faultbox-reflection";

/// The most files that one service's description may take.
const MOST_FILES: usize = 1000;
/// The largest answer of a server that is kept.
const LARGEST_ANSWER: usize = 16 << 20;

const VERSIONS: [&str; 2] = ["v1", "v1alpha"];

/// Why a server's description is not to be had.
#[derive(Debug)]
pub enum Unknown {
    /// The connection failed: the call would, too.
    Broken(Broken),
    /// The server does not have it, or does not tell; says why.
    NotTold(String),
}

type Known = HashMap<(SocketAddr, String), DescriptorPool>;

/// What servers have told before: a process runs one test, and its services do not change what they are.
static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

/// The types of a service.
///
/// # Errors
/// Why they are not known.
pub async fn describe(endpoint: &Endpoint, service: &str) -> Result<DescriptorPool, Unknown> {
    let key = (endpoint.addr, service.to_owned());
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = known().get(&key) {
        return Ok(pool.clone());
    }
    let mut why = String::new();
    for version in VERSIONS {
        match ask(endpoint, version, service).await {
            Ok(Ok(files)) => {
                let mut pool = DescriptorPool::new();
                pool.add_file_descriptor_protos(files)
                    .map_err(|e| Unknown::NotTold(format!("its descriptors are broken: {e}")))?;
                known().insert(key, pool.clone());
                return Ok(pool);
            }
            Ok(Err(refusal)) => why = refusal,
            Err(broken) => return Err(Unknown::Broken(broken)),
        }
    }
    Err(Unknown::NotTold(why))
}

/// Collects the file of a service and what it imports; the inner error is the server's refusal.
async fn ask(
    endpoint: &Endpoint,
    version: &str,
    service: &str,
) -> Result<Result<Vec<FileDescriptorProto>, String>, Broken> {
    let target = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
    let headers = [
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", AGENT),
    ]
    .map(|(n, v)| (n.to_owned(), v.to_owned()));
    let request =
        build(endpoint, "POST", &target, &headers).map_err(|e| Broken::Malformed(e.to_string()))?;
    connected(endpoint, |send| async move {
        let mut send = send.ready().await?;
        let (response, stream) = send.send_request(request, false)?;
        let first = Question {
            file_containing_symbol: Some(service.to_owned()),
            ..Question::default()
        };
        let mut talk = Talk {
            stream,
            reply: None,
            buffer: BytesMut::new(),
        };
        talk.say(&first)?;
        let (head, body) = response.await?.into_parts();
        if head.status != 200 {
            return Ok(Err(format!("reflection answered HTTP {}", head.status)));
        }
        if head.headers.contains_key("grpc-status") {
            return Ok(Err("the server does not offer reflection".into()));
        }
        talk.reply = Some(body);
        let mut files: HashMap<String, FileDescriptorProto> = HashMap::new();
        let mut asked: HashSet<String> = HashSet::new();
        loop {
            let answer = match talk.hear().await? {
                Some(answer) => answer,
                None => return Ok(Err("the server does not offer reflection".into())),
            };
            if let Some(refusal) = answer.error {
                return Ok(Err(refusal.error_message));
            }
            for bytes in answer.files.unwrap_or_default().file_descriptor_proto {
                let file = FileDescriptorProto::decode(&*bytes)
                    .map_err(|e| Broken::Malformed(e.to_string()))?;
                files.insert(file.name().to_owned(), file);
            }
            let missing = files
                .values()
                .flat_map(|f| &f.dependency)
                .find(|name| !files.contains_key(*name) && !asked.contains(*name))
                .cloned();
            match missing {
                Some(name) if files.len() < MOST_FILES => {
                    asked.insert(name.clone());
                    talk.say(&Question {
                        file_by_filename: Some(name),
                        ..Question::default()
                    })?;
                }
                _ => return Ok(Ok(files.into_values().collect())),
            }
        }
    })
    .await
}

/// A conversation of questions and answers on one stream.
struct Talk {
    stream: SendStream<Bytes>,
    reply: Option<RecvStream>,
    buffer: BytesMut,
}

impl Talk {
    /// Questions are far smaller than any window.
    fn say(&mut self, question: &Question) -> Result<(), Broken> {
        self.stream
            .send_data(framed(&question.encode_to_vec()), false)?;
        Ok(())
    }

    /// The next answer; `None` if the server has ended the stream.
    async fn hear(&mut self) -> Result<Option<Answer>, Broken> {
        loop {
            if let Some(message) = unframe(&mut self.buffer) {
                return Answer::decode(message)
                    .map(Some)
                    .map_err(|e| Broken::Malformed(e.to_string()));
            }
            let Some(reply) = &mut self.reply else {
                return Ok(None);
            };
            match next_chunk(reply).await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Ok(None),
            }
            if self.buffer.len() > LARGEST_ANSWER {
                return Err(Broken::TooLarge);
            }
        }
    }
}

/// A message with its prefix.
pub fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.len());
    out.put_u8(0);
    out.put_u32(message.len() as u32);
    out.put_slice(message);
    out.freeze()
}

/// Takes one whole message from the front. Steps offer no compression, so that servers use none.
pub fn unframe(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = u32::from_be_bytes(*buffer.get(1..5)?.first_chunk()?) as usize;
    if buffer.len() - 5 < length {
        return None;
    }
    buffer.advance(5);
    Some(buffer.split_to(length).freeze())
}
