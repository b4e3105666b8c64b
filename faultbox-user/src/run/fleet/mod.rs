//! The proxies of one test: one per mediated interface, started before any service so that services may need each other in a circle.

pub mod ports;
pub mod source;
pub mod threads;

use std::collections::BTreeMap;
use std::sync::Arc;

use faultbox_contract::{
    Address, Addresses, EventSink, Meter, Protocol, ProxyEvent, ProxyHost, RuleSet, SourceLookup,
};
use serde_json::json;

use crate::events::EventLog;
use crate::plan::{MeterSnapshot, Topology};
use crate::run::certificates::Certificates;

pub use ports::LocalPorts;
pub use source::Sources;
pub use threads::Threads;

/// The protocol of this canonical name.
pub fn protocol(name: &str) -> Option<&'static dyn Protocol> {
    faultbox_fleet::find(name)
}

/// Where consumers reach each interface that has a proxy.
pub fn addresses(topology: &Topology) -> Addresses {
    let all = topology.services.iter().flat_map(|s| &s.interfaces);
    all.filter_map(|interface| {
        Some(Address {
            host: interface.host.clone(),
            upstream: interface.addr,
            reach: interface.proxy_addr?,
        })
    })
    .collect()
}

/// The running proxies.
#[derive(Default)]
pub struct Fleet {
    proxies: BTreeMap<(String, String), Proxy>,
}

struct Proxy {
    protocol: &'static str,
    rules: Arc<RuleSet>,
    meter: Arc<Meter>,
    task: tokio::task::JoinHandle<()>,
}

impl Fleet {
    /// Starts a proxy for every interface that has one, on `threads`. With `redirected`, the kernel leads services to the proxies whatever address
    /// they are told, so nothing that a server advertises need be replaced.
    ///
    /// # Errors
    /// An interface whose listener or protocol is missing: a defect of ours, as a lower-case fragment.
    pub fn start(
        threads: &Threads,
        topology: &Topology,
        ports: &LocalPorts,
        events: &Arc<EventLog>,
        sources: &Arc<dyn SourceLookup>,
        redirected: bool,
        certificates: &Certificates,
    ) -> Result<Fleet, String> {
        let mut fleet = Fleet::default();
        let addresses = Arc::new(match redirected {
            true => Addresses::default(),
            false => addresses(topology),
        });
        for service in &topology.services {
            for interface in &service.interfaces {
                let Some(addr) = interface.proxy_addr else {
                    continue;
                };
                let name = format!("{}.{}", service.name, interface.name);
                let sockets = ports
                    .take(addr)
                    .ok_or_else(|| format!("the proxy of {name} has no socket at {addr}"))?;
                let protocol = protocol(interface.protocol).ok_or_else(|| {
                    format!("protocol {} is not in the fleet", interface.protocol)
                })?;
                let (rules, meter) = (Arc::<RuleSet>::default(), Arc::<Meter>::default());
                let host = ProxyHost {
                    interface: name.as_str().into(),
                    listener: sockets.listener.map(Arc::new),
                    listener_v6: sockets.listener_v6.map(Arc::new),
                    datagrams: sockets.datagrams.map(Arc::new),
                    upstream: interface.addr,
                    tls: certificates.of(interface),
                    rules: rules.clone(),
                    meter: meter.clone(),
                    sink: Arc::new(Sink {
                        service: service.name.clone(),
                        interface: interface.name.clone(),
                        events: events.clone(),
                    }),
                    sources: sources.clone(),
                    addresses: addresses.clone(),
                    lanes: threads.lanes().homed(fleet.proxies.len()),
                };
                let home = host
                    .lanes
                    .home()
                    .ok_or("the proxies have no threads")?
                    .clone();
                let proxy = Proxy {
                    protocol: interface.protocol,
                    rules,
                    meter,
                    task: home.spawn(protocol.serve(host)),
                };
                fleet
                    .proxies
                    .insert((service.name.clone(), interface.name.clone()), proxy);
            }
        }
        Ok(fleet)
    }

    /// The rules in force on an interface; `None` if it has no proxy.
    pub fn rules(&self, service: &str, interface: &str) -> Option<&Arc<RuleSet>> {
        self.proxies
            .get(&(service.to_owned(), interface.to_owned()))
            .map(|p| &p.rules)
    }

    /// What the proxies themselves have cost, per interface that saw a request.
    pub fn meters(&self) -> Vec<MeterSnapshot> {
        self.proxies
            .iter()
            .filter(|(_, proxy)| proxy.meter.count() > 0)
            .map(|((service, interface), proxy)| MeterSnapshot {
                name: format!("{service}.{interface}"),
                protocol: proxy.protocol.to_owned(),
                pairs: proxy.meter.snapshot(),
            })
            .collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for proxy in self.proxies.values() {
            proxy.task.abort();
        }
    }
}

/// Passes a proxy's events on with the interface they are about.
struct Sink {
    service: String,
    interface: String,
    events: Arc<EventLog>,
}

impl EventSink for Sink {
    fn emit(&self, event: ProxyEvent) {
        let mut fields = event.fields;
        if let Some(map) = fields.as_object_mut() {
            map.insert("interface".to_owned(), json!(self.interface));
        } else {
            fields = json!({"interface": self.interface, "data": fields});
        }
        self.events.record(event.kind, Some(&self.service), fields);
    }
}
