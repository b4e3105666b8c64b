//! A server, and a client, of any protocol: what they say is known beforehand, so that between them there is only the way to be measured.

use std::net::TcpListener;
use std::sync::Arc;

use faultbox_traffic::{Carrier, Said, Traffic};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Exchanges that are made ready before the first: more than one connection has. Those that come later are the same again.
const READY: u32 = 8192;

/// What both sides say.
pub struct Script {
    opening: Vec<Said>,
    exchanges: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The script of the traffic with this name.
pub fn find(name: &str) -> Result<Arc<Script>, String> {
    let streams = |t: &Traffic| matches!(t.carrier, Carrier::Stream);
    let mut all: Vec<Traffic> = faultbox_traffic::all();
    all.retain(streams);
    let known: Vec<&str> = all.iter().map(|t| t.name).collect();
    let known = known.join(", ");
    let traffic = all.into_iter().find(|t| t.name == name);
    let traffic = traffic.ok_or_else(|| format!("`{name}`: there is {known}"))?;
    Ok(Arc::new(Script {
        exchanges: (0..READY).map(traffic.exchange).collect(),
        opening: traffic.opening,
    }))
}

/// Answers every connection to its end; one thread for all, as the load has.
pub fn serve(listener: TcpListener, script: Arc<Script>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    runtime.block_on(async {
        listener.set_nonblocking(true).map_err(|e| e.to_string())?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| e.to_string())?;
        loop {
            let (stream, _) = listener.accept().await.map_err(|e| e.to_string())?;
            let script = script.clone();
            tokio::spawn(async move {
                // A client that has gone is no news.
                let _ = answer(stream, &script).await;
            });
        }
    })
}

async fn answer(mut stream: TcpStream, script: &Script) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut heard = vec![];
    for said in &script.opening {
        match said {
            Said::Client(bytes) => {
                heard.resize(bytes.len(), 0);
                stream.read_exact(&mut heard).await?;
            }
            Said::Server(bytes) => stream.write_all(bytes).await?,
        }
    }
    for (request, reply) in script.exchanges.iter().cycle() {
        heard.resize(request.len(), 0);
        stream.read_exact(&mut heard).await?;
        stream.write_all(reply).await?;
    }
    Ok(())
}

/// A client's connection.
pub struct Client {
    stream: TcpStream,
    script: Arc<Script>,
    next: usize,
    heard: Vec<u8>,
}

impl Client {
    /// After the opening.
    pub async fn open(stream: TcpStream, script: Arc<Script>) -> Result<Client, String> {
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let mut client = Client {
            stream,
            script: script.clone(),
            next: 0,
            heard: vec![],
        };
        for said in &script.opening {
            match said {
                Said::Client(bytes) => {
                    let sent = client.stream.write_all(bytes).await;
                    sent.map_err(|e| e.to_string())?;
                }
                Said::Server(bytes) => client.hear(bytes).await?,
            }
        }
        Ok(client)
    }

    /// One request and its reply.
    pub async fn exchange(&mut self) -> Result<(), String> {
        let script = self.script.clone();
        let (request, reply) = &script.exchanges[self.next % script.exchanges.len()];
        self.next += 1;
        let sent = self.stream.write_all(request).await;
        sent.map_err(|e| e.to_string())?;
        self.hear(reply).await
    }

    async fn hear(&mut self, expected: &[u8]) -> Result<(), String> {
        self.heard.resize(expected.len(), 0);
        let heard = self.stream.read_exact(&mut self.heard).await;
        heard.map_err(|e| e.to_string())?;
        match self.heard == expected {
            true => Ok(()),
            false => Err(format!("the answer to request {} is another", self.next)),
        }
    }
}
