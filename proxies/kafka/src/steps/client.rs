//! A client of a cluster: connections to its brokers, and what they speak.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use faultbox_contract::{Endpoint, Response, duration};
use faultbox_engine::{errno_name, is_quiet, open, send};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::codec::schema::{self, API_VERSIONS, METADATA};
use crate::codec::{self, Api, Reply, Request, Struct, Value};
use crate::errors;

/// The largest response that a step takes; a fetch asks for far less.
const LARGEST: usize = 64 << 20;
/// How long a topic that is being created may take to have a leader.
const CREATION: Duration = Duration::from_secs(5);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// What says that a topic is about to be there: UNKNOWN_TOPIC_OR_PARTITION, LEADER_NOT_AVAILABLE.
const COMING: [i64; 2] = [3, 5];

/// Why a step has failed.
#[derive(Debug)]
pub enum Failure {
    /// The system says so.
    Io(io::Error),
    /// The broker closed the connection without an answer.
    Eof,
    /// The time is up.
    Late,
    /// What came is no answer.
    Malformed(&'static str),
    /// More than a step takes.
    TooLarge,
    /// The broker speaks no version of this request that is known here.
    Unspoken(&'static str),
    /// The broker's own error, and its words.
    Said(i64, String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

impl Failure {
    /// The error in this part of a response, if there is one.
    pub fn check(part: &Struct) -> Result<(), Failure> {
        match part.int("error_code") {
            None | Some(0) => Ok(()),
            Some(code) => Err(Failure::Said(code, part.text("error_message"))),
        }
    }

    /// The code that a spec sees.
    fn code(&self) -> String {
        match self {
            Failure::Io(e) => errno_name(e),
            Failure::Eof => "EOF".into(),
            Failure::Late => "ETIMEDOUT".into(),
            Failure::Malformed(_) => "EPROTO".into(),
            Failure::TooLarge => "EMSGSIZE".into(),
            Failure::Unspoken(_) => "UNSUPPORTED_VERSION".into(),
            Failure::Said(code, _) => errors::name(*code),
        }
    }

    /// In words; `limit` is how long was waited.
    pub fn text(&self, limit: Duration) -> String {
        match self {
            Failure::Io(e) => e.to_string(),
            Failure::Eof => "the connection was closed before an answer".into(),
            Failure::Late => format!("no answer within {}", duration::show(limit)),
            Failure::Malformed(why) => format!("the answer is not Kafka's protocol: {why}"),
            Failure::TooLarge => "more than the 64 MiB that a step keeps".into(),
            Failure::Unspoken(api) => format!("the broker speaks no known version of {api}"),
            Failure::Said(code, words) if words.is_empty() => errors::name(*code),
            Failure::Said(code, words) => format!("{}: {words}", errors::name(*code)),
        }
    }

    /// The step's response.
    pub fn response(&self, limit: Duration) -> Response {
        Response::failure(self.code(), self.text(limit))
    }
}

/// One partition, and the broker that leads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Partition {
    /// Its number.
    pub number: i64,
    /// The broker's.
    pub leader: i64,
}

/// A client for the length of one step, or of those of one caller.
pub struct Client {
    endpoint: Endpoint,
    deadline: Instant,
    brokers: HashMap<i64, SocketAddr>,
    connections: HashMap<SocketAddr, Connection>,
    /// What has been learnt of topics that are there.
    topics: HashMap<String, Vec<Partition>>,
}

struct Connection {
    stream: TcpStream,
    spoken: HashMap<i64, (i64, i64)>,
    asked: i32,
    heard: BytesMut,
}

/// Any broker will do.
pub const ANY: i64 = -1;

impl Client {
    /// The one that the caller has kept, or a new one. It connects when it is first asked something.
    pub fn of(endpoint: &Endpoint, deadline: Instant) -> Client {
        let mut client = endpoint.take_kept("").unwrap_or_else(|| Client {
            endpoint: Endpoint {
                // Or what is kept would keep itself.
                kept: None,
                ..endpoint.clone()
            },
            deadline,
            brokers: HashMap::new(),
            connections: HashMap::new(),
            topics: HashMap::new(),
        });
        client.deadline = deadline;
        let connected = client.connections.len();
        let still_open = |c: &Connection| c.heard.is_empty() && is_quiet(&c.stream);
        client.connections.retain(|_, c| still_open(c));
        if client.connections.len() < connected {
            // Whoever closed it may no longer lead.
            client.topics.clear();
        }
        client
    }

    /// Keeps it for the caller's next step. What has failed is not kept, and with it goes what may no longer be so.
    pub fn keep(self, endpoint: &Endpoint) {
        endpoint.keep("", self);
    }

    /// Milliseconds that are left, for a broker's own time-out.
    pub fn left_ms(&self) -> i64 {
        let left = self.deadline.saturating_duration_since(Instant::now());
        i64::try_from(left.as_millis())
            .unwrap_or(i64::MAX)
            .clamp(1, i64::from(i32::MAX))
    }

    /// Grants so much more time, to leave in good order.
    pub fn extend(&mut self, more: Duration) {
        self.deadline = self.deadline.max(Instant::now()) + more;
    }

    fn addr(&self, broker: i64) -> SocketAddr {
        self.brokers
            .get(&broker)
            .copied()
            .unwrap_or(self.endpoint.addr)
    }

    async fn in_time<T>(
        deadline: Instant,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::time::timeout_at(deadline.into(), work)
            .await
            .unwrap_or(Err(Failure::Late))
    }

    async fn connection(&mut self, broker: i64) -> Result<&mut Connection, Failure> {
        let addr = self.addr(broker);
        if !self.connections.contains_key(&addr) {
            let broker = Endpoint {
                addr,
                ..self.endpoint.clone()
            };
            let connect = async {
                let mut connection = Connection {
                    stream: open(&broker, &[]).await?,
                    spoken: HashMap::new(),
                    asked: 0,
                    heard: BytesMut::new(),
                };
                connection.learn().await?;
                Ok(connection)
            };
            let connection = Client::in_time(self.deadline, connect).await?;
            self.connections.insert(addr, connection);
        }
        self.connections.get_mut(&addr).ok_or(Failure::Eof)
    }

    /// The newest version of a request, within bounds, that the broker speaks.
    pub async fn choose(
        &mut self,
        broker: i64,
        key: i16,
        oldest: i16,
        newest: i16,
    ) -> Result<(&'static Api, i16), Failure> {
        let api = schema::api(key).ok_or(Failure::Unspoken("this request"))?;
        let connection = self.connection(broker).await?;
        let spoken = connection.spoken.get(&i64::from(key));
        let (low, high) = spoken.copied().ok_or(Failure::Unspoken(api.name))?;
        let version = i64::from(newest.min(api.newest)).min(high);
        if version < low.max(oldest.into()) {
            return Err(Failure::Unspoken(api.name));
        }
        Ok((api, version as i16))
    }

    /// Asks a broker.
    pub async fn ask(
        &mut self,
        broker: i64,
        api: &'static Api,
        version: i16,
        body: Struct,
    ) -> Result<Struct, Failure> {
        let deadline = self.deadline;
        let connection = self.connection(broker).await?;
        let ask = async {
            let correlation = connection.say(api, version, body).await?;
            connection.hear(api, version, correlation).await
        };
        let outcome = Client::in_time(deadline, ask).await;
        if !matches!(outcome, Ok(_) | Err(Failure::Said(..))) {
            // What may still come would be taken for the next answer.
            let addr = self.addr(broker);
            self.connections.remove(&addr);
        }
        outcome
    }

    /// Tells a broker something that it does not answer.
    pub async fn tell(
        &mut self,
        broker: i64,
        api: &'static Api,
        version: i16,
        body: Struct,
    ) -> Result<(), Failure> {
        let deadline = self.deadline;
        let connection = self.connection(broker).await?;
        let tell = async {
            connection.say(api, version, body).await?;
            // A broker answers the requests of a connection in order: it has had the record when it has answered this.
            connection.learn().await
        };
        Client::in_time(deadline, tell).await
    }

    /// The cluster's metadata: of this topic, or of all. With `create`, asking for a topic may create it.
    pub async fn metadata_of(
        &mut self,
        topic: Option<&str>,
        create: bool,
    ) -> Result<Struct, Failure> {
        let (api, version) = self.choose(ANY, METADATA, 1, 9).await?;
        let mut body = Struct::new(&api.request, version);
        match topic {
            Some(name) => body.push("topics", version, |t| t.with("topic", name)),
            None => {
                if let Some(topics) = body.get_mut("topics") {
                    *topics = Value::List(None);
                }
            }
        }
        body.set("allow_auto_topic_creation", i64::from(create));
        let metadata = self.ask(ANY, api, version, body).await?;
        self.meet(&metadata).await;
        Ok(metadata)
    }

    /// The same of what is there.
    pub async fn metadata(&mut self, topic: Option<&str>) -> Result<Struct, Failure> {
        self.metadata_of(topic, false).await
    }

    /// Learns where the brokers are. One alone is where the spec says, whatever it calls itself.
    async fn meet(&mut self, metadata: &Struct) {
        let brokers = metadata.list("brokers");
        if brokers.len() < 2 {
            return;
        }
        for broker in brokers {
            if let Some(id) = broker.int("node_id")
                && let Some(addr) = self.place(broker).await
            {
                self.brokers.insert(id, addr);
            }
        }
    }

    /// Where to go for what a broker advertises.
    pub async fn place(&self, part: &Struct) -> Option<SocketAddr> {
        let (host, port) = (part.text("host"), u16::try_from(part.int("port")?).ok()?);
        if let Some(reach) = self.endpoint.addresses.reach(&host, port) {
            return Some(reach);
        }
        tokio::net::lookup_host((host, port)).await.ok()?.next()
    }

    /// Notes where a broker is that a response names.
    pub async fn note(&mut self, part: &Struct) -> i64 {
        let id = part.int("node_id").unwrap_or(ANY);
        if self.brokers.is_empty() {
            // One broker: it is where the spec says.
            return ANY;
        }
        if let Some(addr) = self.place(part).await {
            self.brokers.insert(id, addr);
        }
        id
    }

    /// The broker that creates topics.
    pub async fn controller(&mut self) -> Result<i64, Failure> {
        let metadata = self.metadata(None).await?;
        Ok(metadata.int("controller_id").unwrap_or(ANY))
    }

    /// A topic's partitions as they were when last asked for, or as they are. One that is not there is created where brokers do that.
    pub async fn known_partitions(&mut self, topic: &str) -> Result<Vec<Partition>, Failure> {
        match self.topics.get(topic) {
            Some(partitions) => Ok(partitions.clone()),
            None => self.partitions(topic, true).await,
        }
    }

    /// A topic's partitions. One that is not there yet is waited for: as long as a creation takes with `create`, else until the
    /// time is up.
    pub async fn partitions(
        &mut self,
        topic: &str,
        create: bool,
    ) -> Result<Vec<Partition>, Failure> {
        let start = Instant::now();
        loop {
            let metadata = self.metadata_of(Some(topic), create).await?;
            let found = metadata.list("topics").first();
            let found = found.ok_or(Failure::Malformed("metadata without the topic"))?;
            let parts = found.list("partitions");
            let errors = parts
                .iter()
                .chain([found])
                .map(|p| p.int("error_code").unwrap_or(0));
            // Replicas that are down do not concern a client.
            let error = errors.filter(|code| ![0, 9].contains(code)).max();
            let Some(error) = error else {
                let partition = |p: &Struct| Partition {
                    number: p.int("partition").unwrap_or(0),
                    leader: p.int("leader_id").unwrap_or(ANY),
                };
                let partitions: Vec<Partition> = parts.iter().map(partition).collect();
                self.topics.insert(topic.to_owned(), partitions.clone());
                return Ok(partitions);
            };
            let patient = !create || start.elapsed() < CREATION;
            let late = Instant::now() + PAUSE > self.deadline;
            if !COMING.contains(&error) || !patient || late {
                return Err(Failure::Said(error, format!("topic {topic}")));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Connection {
    /// Asks what the broker speaks.
    async fn learn(&mut self) -> Result<(), Failure> {
        let api = schema::api(API_VERSIONS).ok_or(Failure::Unspoken("api_versions"))?;
        let body = Struct::new(&api.request, 0);
        let correlation = self.say(api, 0, body).await?;
        let reply = self.hear(api, 0, correlation).await?;
        Failure::check(&reply)?;
        for one in reply.list("api_keys") {
            let of = |name| one.int(name).unwrap_or(0);
            self.spoken
                .insert(of("api_key"), (of("min_version"), of("max_version")));
        }
        Ok(())
    }

    async fn say(&mut self, api: &'static Api, version: i16, body: Struct) -> Result<i32, Failure> {
        self.asked += 1;
        let mut request = Request::new(api, version, self.asked);
        request.body = body;
        send(&self.stream, &request.encode()).await?;
        Ok(self.asked)
    }

    async fn hear(
        &mut self,
        api: &'static Api,
        version: i16,
        correlation: i32,
    ) -> Result<Struct, Failure> {
        let malformed = |m: codec::Malformed| Failure::Malformed(m.0);
        let message: Bytes = loop {
            match codec::reply_head(&self.heard).map_err(malformed)? {
                Some((len, _)) if len > LARGEST => return Err(Failure::TooLarge),
                Some((len, heard)) if self.heard.len() >= len => {
                    let message = self.heard.split_to(len).freeze();
                    if heard == correlation {
                        break message;
                    }
                    if heard > correlation {
                        return Err(Failure::Malformed("a response to another request"));
                    }
                    // There are brokers that answer a record that wants no answer.
                    continue;
                }
                _ => {}
            }
            self.heard.reserve(16 << 10);
            if self.stream.read_buf(&mut self.heard).await? == 0 {
                return Err(Failure::Eof);
            }
        };
        Ok(Reply::decode(api, version, message)
            .map_err(malformed)?
            .body)
    }
}
