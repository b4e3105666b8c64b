//! Connections that a caller keeps from one step to its next, as the pool of a real client would.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

type Connections = HashMap<(SocketAddr, String), Box<dyn Any + Send>>;

/// One caller's connections. A step takes its own out, and puts it back if the next may use it: nothing that failed, and nothing whose
/// session the step has changed.
#[derive(Clone, Default)]
pub struct Kept(Arc<Mutex<Connections>>);

impl Kept {
    /// Takes the connection to `addr` that was kept under `key`, by which a protocol tells apart those that differ, in their user for
    /// example. Whether it is still open, the protocol must see.
    pub fn take<C: Any>(&self, addr: SocketAddr, key: &str) -> Option<C> {
        let connection = self.connections().remove(&(addr, key.to_owned()))?;
        connection.downcast().ok().map(|c| *c)
    }

    /// Keeps a connection for the next step; one that was kept under the same key is closed.
    pub fn put<C: Any + Send>(&self, addr: SocketAddr, key: &str, connection: C) {
        let before = self
            .connections()
            .insert((addr, key.to_owned()), Box::new(connection));
        // Closing may take a while; nobody waits for the lock meanwhile.
        drop(before);
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kept({})", self.connections().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_taken_once_by_whom_it_fits() {
        let (kept, addr) = (Kept::default(), SocketAddr::from(([127, 0, 0, 1], 1)));
        kept.put(addr, "ann", 1_u8);
        assert_eq!(kept.take::<u8>(addr, "bob"), None);
        assert_eq!(kept.clone().take::<u8>(addr, "ann"), Some(1));
        assert_eq!(kept.take::<u8>(addr, "ann"), None);
        kept.put(addr, "", 1_u8);
        kept.put(addr, "", 2_u8);
        assert_eq!(kept.take::<u8>(addr, ""), Some(2));
    }
}
