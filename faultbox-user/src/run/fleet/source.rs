//! Which service a connection or a datagram comes from: a connection as the kernel wrote it down when it was made, or else
//! address → socket → the process that holds it → its service.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use faultbox_contract::SourceLookup;

use crate::run::procs;
use crate::run::services::Service;
use crate::run::tracer::{Feature, Watch};

/// IPPROTO_TCP.
const TCP: u32 = 6;

/// Looks connections up among the services of a test.
#[derive(Default)]
pub struct Sources {
    // Proxies start before services exist.
    services: OnceLock<Vec<Arc<Service>>>,
    watch: OnceLock<Arc<Watch>>,
}

impl Sources {
    /// Tells which services there are.
    pub fn set(&self, services: Vec<Arc<Service>>) {
        let _ = self.services.set(services);
    }

    /// Tells who writes down connections in the kernel.
    pub fn watched_by(&self, watch: &Arc<Watch>) {
        let _ = self.watch.set(watch.clone());
    }
}

impl Sources {
    fn holder(&self, inode: u64) -> Option<String> {
        self.services.get()?.iter().find_map(|service| {
            service
                .tree()
                .into_iter()
                .any(|pid| procs::holds_socket(pid, inode))
                .then(|| service.decl().name.clone())
        })
    }
}

impl SourceLookup for Sources {
    fn source_of(&self, peer: SocketAddr) -> Option<String> {
        if let Some(watch) = self.watch.get().filter(|w| w.has(Feature::Sockets)) {
            return watch.source(peer, TCP).map(str::to_owned);
        }
        self.holder(procs::tcp_inode(peer, false)?)
    }

    fn datagram_source_of(&self, peer: SocketAddr) -> Option<String> {
        self.holder(procs::udp_inode(peer)?)
    }
}
