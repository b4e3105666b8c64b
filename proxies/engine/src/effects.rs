//! What rules do to an answer on its way to the client: fewer bytes, slower bytes, a wrong byte.

use std::io;
use std::sync::Arc;

use faultbox_contract::ArmedRule;
use tokio::net::TcpStream;

use crate::fault::Throttle;
use crate::socket::send;

/// The effects on one answer. `W` finds the byte that a corrupt rule inverts: what payload is, the protocol knows.
#[derive(Debug)]
pub struct Effects<W> {
    /// How many bytes may still go out before the connection is closed.
    truncate: Option<u64>,
    throttle: Option<Throttle>,
    corrupt: Vec<(Arc<ArmedRule>, W)>,
}

impl<W> Effects<W> {
    /// Collects them; `corrupt` says what a modifier looks for, if it is one that corrupts.
    pub fn new(
        truncate: Option<u64>,
        modifiers: &[Arc<ArmedRule>],
        corrupt: impl Fn(&ArmedRule) -> Option<W>,
    ) -> Option<Box<Effects<W>>> {
        let effects = Effects {
            truncate,
            throttle: Throttle::of(modifiers),
            corrupt: modifiers
                .iter()
                .filter_map(|rule| Some((rule.clone(), corrupt(rule)?)))
                .collect(),
        };
        let any = truncate.is_some() || effects.throttle.is_some() || !effects.corrupt.is_empty();
        any.then(|| Box::new(effects))
    }

    /// Is there a byte to be inverted?
    pub fn corrupts(&self) -> bool {
        self.corrupt.iter().any(|(rule, _)| !rule.is_lifted())
    }

    /// Shows the next bytes of the answer to each that inverts one.
    pub fn corrupt(&mut self, mut pass: impl FnMut(&mut W)) {
        for (rule, walk) in &mut self.corrupt {
            if !rule.is_lifted() {
                pass(walk);
            }
        }
    }

    /// Sends the next part of the answer, as much of it as may go and as fast as it may; false if that was the last that may.
    ///
    /// # Errors
    /// What write(2) says.
    pub async fn send(&mut self, to: &TcpStream, mut part: &[u8]) -> io::Result<bool> {
        let mut goes_on = true;
        if let Some(left) = &mut self.truncate {
            goes_on = *left > part.len() as u64;
            let n = usize::try_from(*left).map_or(part.len(), |left| left.min(part.len()));
            *left -= n as u64;
            part = &part[..n];
        }
        match &mut self.throttle {
            Some(throttle) => throttle.send(to, part).await?,
            None => send(to, part).await?,
        }
        Ok(goes_on)
    }
}
