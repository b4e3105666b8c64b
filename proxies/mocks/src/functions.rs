//! Functions of the spec: they live where the spec does, in the worker, and are called through a socket.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::plan::Reply;

/// A call of a function: one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Question {
    /// Which function.
    pub function: usize,
    /// What it gets.
    pub request: Value,
}

/// What came of it: one line of JSON. No reply means that the mock answers as if the route were not there.
pub type Outcome = Result<Option<Reply>, String>;

/// How long a function may take. They compute a reply and can wait for nothing, so this is only reached when the worker is gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the functions are.
#[derive(Debug, Clone, Default)]
pub struct Functions {
    socket: Option<PathBuf>,
}

impl Functions {
    /// Behind this socket.
    pub fn new(socket: Option<PathBuf>) -> Functions {
        Functions { socket }
    }

    /// Calls one.
    ///
    /// # Errors
    /// It raised, or cannot be reached.
    pub async fn call(&self, function: usize, request: Value) -> Outcome {
        tokio::time::timeout(PATIENCE, self.ask(&Question { function, request }))
            .await
            .unwrap_or_else(|_| Err("the function did not return".to_owned()))
    }

    async fn ask(&self, question: &Question) -> Outcome {
        let unreachable = |e: &dyn std::fmt::Display| format!("the spec cannot be reached: {e}");
        let path = self
            .socket
            .as_ref()
            .ok_or_else(|| unreachable(&"there is no socket"))?;
        let mut line = serde_json::to_string(question).map_err(|e| unreachable(&e))?;
        line.push('\n');
        let exchange = async {
            // The path of a socket has at most 107 bytes (unix(7)), that of a test's folder may have more: the folder's descriptor is short.
            let folder = std::fs::File::open(path.parent().unwrap_or(path))?;
            let name = path.file_name().unwrap_or_default();
            let near = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
            let mut stream = UnixStream::connect(near).await?;
            stream.write_all(line.as_bytes()).await?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = exchange.await.map_err(|e| unreachable(&e))?;
        serde_json::from_str::<Outcome>(&answer).map_err(|e| unreachable(&e))?
    }
}
