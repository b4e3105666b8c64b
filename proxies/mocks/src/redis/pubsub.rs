//! Who listens to which channel.

use std::collections::HashMap;

use faultbox_redis::value::Value;
use tokio::sync::mpsc::Sender;

use super::store::{bulk, glob};

/// One listening connection.
#[derive(Debug, Default)]
struct Listener {
    channels: Vec<Vec<u8>>,
    patterns: Vec<Vec<u8>>,
    /// Where its messages go; a connection that does not read loses its place (the server's client-output-buffer-limit).
    to: Option<Sender<Value>>,
}

/// All listeners, by their connections' numbers.
#[derive(Debug, Default)]
pub(super) struct Hub {
    listeners: HashMap<u64, Listener>,
}

impl Hub {
    /// Subscribes, or ends a subscription; returns how many the connection has then.
    pub(super) fn change(
        &mut self,
        connection: u64,
        to: &Sender<Value>,
        name: &[u8],
        pattern: bool,
        on: bool,
    ) -> usize {
        let listener = self.listeners.entry(connection).or_default();
        listener.to = Some(to.clone());
        let list = match pattern {
            true => &mut listener.patterns,
            false => &mut listener.channels,
        };
        list.retain(|known| known != name);
        if on {
            list.push(name.to_vec());
        }
        let left = listener.channels.len() + listener.patterns.len();
        if left == 0 {
            self.listeners.remove(&connection);
        }
        left
    }

    /// What a connection listens to.
    pub(super) fn of(&self, connection: u64, pattern: bool) -> Vec<Vec<u8>> {
        self.listeners
            .get(&connection)
            .map(|l| if pattern { &l.patterns } else { &l.channels })
            .cloned()
            .unwrap_or_default()
    }

    /// How many subscriptions a connection has.
    pub(super) fn count(&self, connection: u64) -> usize {
        self.listeners
            .get(&connection)
            .map_or(0, |l| l.channels.len() + l.patterns.len())
    }

    /// Forgets a connection.
    pub(super) fn forget(&mut self, connection: u64) {
        self.listeners.remove(&connection);
    }

    /// Sends a message to all who listen; returns how many these are.
    pub(super) fn publish(&mut self, channel: &[u8], message: &[u8]) -> usize {
        let mut reached = 0;
        for listener in self.listeners.values_mut() {
            let mut values = vec![];
            if listener.channels.iter().any(|c| c == channel) {
                values.push(vec![bulk("message"), bulk(channel), bulk(message)]);
            }
            for pattern in listener.patterns.iter().filter(|p| glob(p, channel)) {
                values.push(vec![
                    bulk("pmessage"),
                    bulk(pattern.clone()),
                    bulk(channel),
                    bulk(message),
                ]);
            }
            for value in values {
                reached += 1;
                let sent = listener
                    .to
                    .as_ref()
                    .is_some_and(|to| to.try_send(Value::Push(value)).is_ok());
                if !sent {
                    listener.to = None;
                }
            }
        }
        reached
    }

    /// The channels that somebody listens to, and how many do.
    pub(super) fn channels(&self) -> HashMap<Vec<u8>, usize> {
        let mut channels = HashMap::new();
        for channel in self.listeners.values().flat_map(|l| &l.channels) {
            *channels.entry(channel.clone()).or_insert(0) += 1;
        }
        channels
    }

    /// How many patterns there are.
    pub(super) fn patterns(&self) -> usize {
        self.listeners.values().map(|l| l.patterns.len()).sum()
    }
}
