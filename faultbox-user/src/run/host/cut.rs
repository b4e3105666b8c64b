//! Partitions: by eBPF, which drops every packet between two services, or without it, socket by socket, for TCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use faultbox_contract::{Transport, TriggerSpec};

use super::{Kind, Managed, TestHost};
use crate::plan::report::Blame;
use crate::plan::{CutDecl, Dest, Existing, Launch, ServiceDecl, SyscallAction, SyscallRule};
use crate::run::fleet;
use crate::run::supervisor::cut::{Cut, Direction};
use crate::run::supervisor::{ArmedSyscall, sever, sockets};
use crate::run::tracer::addresses::ways_to;
use crate::run::tracer::{CutRule, Flow, Watch};
use crate::spec::HostError;
use crate::sys::probe;

/// How long a connection may take to be accepted.
const ACCEPTED: Duration = Duration::from_secs(2);

/// A cut in force or lifted.
pub(super) struct Severance {
    pub(super) id: u64,
    pub(super) decl: Arc<CutDecl>,
    pub(super) seed: u64,
    /// How many packets the kernel's programs took, once it is lifted.
    taken: AtomicU64,
    by_sockets: OnceLock<BySockets>,
}

/// A cut without eBPF.
struct BySockets {
    cut: Arc<Cut>,
    /// The rules on connect(2), with the service each is on.
    rules: Vec<(usize, Arc<ArmedSyscall>)>,
}

impl Severance {
    pub(super) fn new(id: u64, decl: Arc<CutDecl>, seed: u64) -> Severance {
        Severance {
            id,
            decl,
            seed,
            taken: AtomicU64::new(0),
            by_sockets: OnceLock::new(),
        }
    }

    /// How it is enforced.
    pub(super) fn mechanism(&self) -> &'static str {
        match self.by_sockets.get() {
            Some(_) => "muted sockets",
            None => "eBPF (packets)",
        }
    }

    fn concerns(&self, service: &str) -> bool {
        self.decl.ends.0 == service || self.decl.ends.1 == service
    }

    /// How many packets it took, and connections it refused.
    pub(super) fn hits(&self, watch: Option<&Watch>) -> u64 {
        let by_sockets = self.by_sockets.get().map_or(0, |b| {
            let refused = |(_, rule): &(usize, Arc<ArmedSyscall>)| match rule.rule.action {
                SyscallAction::Deny { .. } => rule.hits(),
                _ => 0,
            };
            b.cut.dropped() + b.rules.iter().map(refused).sum::<u64>()
        });
        let by_kernel = watch.map_or(0, |w| w.dropped(self.id));
        self.taken.load(Ordering::Relaxed) + by_kernel + by_sockets
    }
}

/// What this machine cannot do.
fn refuse(message: String) -> HostError {
    HostError {
        message,
        help: Some("with eBPF every packet between two services can be cut: `faultbox doctor` tells how to get it".into()),
        blame: Blame::Environment,
    }
}

/// Where a service is reached over TCP: its interfaces, their proxies, and whatever else it listens at.
fn reached(service: &ServiceDecl, listening: &sockets::Sockets) -> Dest {
    let declared = service
        .interfaces
        .iter()
        .flat_map(|i| [Some(i.addr), i.proxy_addr])
        .flatten();
    let all = declared.chain(listening.listening.iter().copied());
    let here = own_addresses();
    Dest::Addrs(
        all.flat_map(|addr| {
            let ways = match addr.ip().is_unspecified() {
                true => here.clone(),
                false => ways_to(addr.ip()),
            };
            ways.into_iter().map(move |ip| (ip, addr.port()).into())
        })
        .collect(),
    )
}

/// Every address that leads to a socket which is bound to none: a dual-stack one hears both families.
fn own_addresses() -> Vec<IpAddr> {
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let interfaces = nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|i| {
            let address = i.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        });
    loopback
        .into_iter()
        .flat_map(ways_to)
        .chain(interfaces)
        .collect()
}

/// What is put on a client's connect(2) to the server: refused at once, or made to wait for an answer that does not come.
fn on_connect(decl: &CutDecl, server: Dest, refused: bool) -> SyscallRule {
    SyscallRule {
        key: "connect".to_owned(),
        syscalls: vec!["connect"],
        action: match refused {
            true => SyscallAction::Deny {
                errno: libc::ECONNREFUSED,
                name: "ECONNREFUSED",
            },
            false => SyscallAction::Mute,
        },
        trigger: TriggerSpec::default(),
        path: None,
        on: None,
        dest: Some(server),
        existing: Existing::Keep,
        label: None,
        text: decl.text.clone(),
    }
}

impl TestHost {
    /// Can this be put in force here at all?
    pub(super) fn cuttable(&self, decl: &CutDecl) -> Result<(), HostError> {
        let Err(why) = self.packets(decl) else {
            return Ok(());
        };
        if decl.probability.is_some() {
            return Err(why);
        }
        let cannot = |why: String| {
            refuse(format!(
                "{} cannot be put in force without eBPF: {why}",
                decl.text
            ))
        };
        // What copies the services' sockets asks for the same permission.
        if let Err(e) = probe::ptrace_child() {
            return Err(cannot(format!("ptrace is refused, too ({e})")));
        }
        for name in [&decl.ends.0, &decl.ends.1] {
            let Some(service) = self.topology.service(name) else {
                continue;
            };
            for interface in &service.interfaces {
                let transport =
                    fleet::protocol(interface.protocol).map_or(Transport::Tcp, |p| p.transport());
                if transport.has_udp() {
                    return Err(cannot(format!(
                        "{name}.{} speaks UDP, and only TCP can be cut without it",
                        interface.name
                    )));
                }
                if service.launch == Launch::Remote && interface.proxy_addr.is_none() {
                    return Err(cannot(format!(
                        "{name}.{} is remote and has no proxy",
                        interface.name
                    )));
                }
            }
        }
        Ok(())
    }

    /// Cuts what `cut` says, and resets what exists if it rejects.
    pub(super) fn sever(&self, fault: &str, cut: &Severance) -> Result<(), HostError> {
        let decl = &cut.decl;
        let refused = |e: String| refuse(format!("{} cannot be put in force: {e}", decl.text));
        let Ok(watch) = self.packets(decl) else {
            return self.sever_by_sockets(fault, cut, &refused);
        };
        if decl.reject {
            // While packets still pass, so that the resets arrive.
            self.reset_existing(fault, decl);
        }
        let rule = CutRule {
            id: cut.id,
            flows: decl
                .flows
                .iter()
                .map(|(from, to)| Flow {
                    from: from.clone(),
                    to: to.clone(),
                })
                .collect(),
            probability: decl.probability,
            seed: cut.seed,
            refuse: decl.reject.then_some(libc::ECONNREFUSED),
        };
        watch.cut(rule).map_err(|e| HostError {
            help: None,
            ..refused(e)
        })
    }

    /// Lifts it.
    pub(super) fn heal(&self, cut: &Severance) {
        let taken = self.watch().map_or(0, |w| w.heal(cut.id));
        cut.taken.fetch_add(taken, Ordering::Relaxed);
        if let Some(by_sockets) = cut.by_sockets.get() {
            for (at, rule) in &by_sockets.rules {
                self.services[*at].lift(rule.id);
            }
            by_sockets.cut.heal();
        }
    }

    fn reset_existing(&self, fault: &str, decl: &CutDecl) {
        for (client, server) in ways(decl) {
            let (Ok((_, managed)), Some(service)) =
                (self.managed(client), self.topology.service(server))
            else {
                continue;
            };
            let listening = self.sockets(server);
            let dest = reached(service, &listening);
            let tree = managed.service.tree();
            sever::sever(client, &tree, Some(&dest), fault, &self.events);
        }
    }

    /// The sockets of a service; none of one that is remote.
    fn sockets(&self, service: &str) -> sockets::Sockets {
        match self.managed(service) {
            Ok((_, managed)) => sockets::of(&managed.service.tree()),
            Err(_) => sockets::Sockets::default(),
        }
    }

    fn sever_by_sockets(
        &self,
        fault: &str,
        severance: &Severance,
        refused: &dyn Fn(String) -> HostError,
    ) -> Result<(), HostError> {
        let decl = &severance.decl;
        let cut = Arc::new(Cut::new(&self.muted));
        let mut rules = vec![];
        let outcome = self.cut_each_way(fault, decl, &cut, &mut rules, refused);
        let _ = severance.by_sockets.set(BySockets { cut, rules });
        if outcome.is_err() {
            self.heal(severance);
        }
        outcome
    }

    fn cut_each_way(
        &self,
        fault: &str,
        decl: &CutDecl,
        cut: &Arc<Cut>,
        rules: &mut Vec<(usize, Arc<ArmedSyscall>)>,
        refused: &dyn Fn(String) -> HostError,
    ) -> Result<(), HostError> {
        // First what is new, so that nothing is made between the look at what exists and the cut.
        for (client, server) in ways(decl) {
            let (Ok((at, managed)), Some(service)) =
                (self.managed(client), self.topology.service(server))
            else {
                continue;
            };
            let dest = reached(service, &self.sockets(server));
            let rule = on_connect(decl, dest, decl.reject && decl.cuts(client, server));
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let rule = ArmedSyscall::new(id, fault.to_owned(), Arc::new(rule), 0).of_cut(cut);
            let rule = Arc::new(rule);
            self.arm_or_keep(managed, &rule)?;
            rules.push((at, rule));
        }
        if decl.reject {
            self.reset_existing(fault, decl);
            return Ok(());
        }
        self.mute_existing(decl, cut).map_err(refused)
    }

    /// Cuts the connections that exist.
    fn mute_existing(&self, decl: &CutDecl, cut: &Cut) -> Result<(), String> {
        let deadline = Instant::now() + ACCEPTED;
        for (client, server) in ways(decl) {
            let Some(service) = self.topology.service(server) else {
                continue;
            };
            loop {
                // The client's first: what it is connected to has been accepted by the time that the others are listed, or will be soon.
                let near = self.sockets(client);
                let far = self.sockets(server);
                // Proxies are in this process.
                let own = sockets::of(&[std::process::id() as i32]);
                let missing = cut.existing(&Direction {
                    client: &near,
                    server: &reached(service, &far),
                    far: [&far, &own],
                    requests: decl.cuts(client, server),
                    answers: decl.cuts(server, client),
                })?;
                match missing.first() {
                    None => break,
                    Some(peer) if Instant::now() > deadline => {
                        return Err(format!(
                            "{client} has a connection to {peer} whose other end nobody holds"
                        ));
                    }
                    Some(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        }
        Ok(())
    }

    /// A service has been started again: what it has connected to before its calls were supervised again is cut, too.
    pub(super) fn cut_again(&self, service: &str) -> Result<(), HostError> {
        let in_force: Vec<_> = self
            .armed()
            .iter()
            .filter(|set| !set.lifted)
            .flat_map(|set| set.parts.iter())
            .filter_map(|part| match &part.kind {
                Kind::Cut(cut) if cut.concerns(service) => Some(cut.clone()),
                _ => None,
            })
            .collect();
        for severance in in_force {
            let Some(by_sockets) = severance.by_sockets.get() else {
                continue;
            };
            let decl = &severance.decl;
            match decl.reject {
                true => self.reset_existing(&decl.text, decl),
                false => self
                    .mute_existing(decl, &by_sockets.cut)
                    .map_err(|e| refuse(format!("{} does not hold any more: {e}", decl.text)))?,
            }
        }
        Ok(())
    }

    /// Arms a service that runs; one that does not is armed when it is started again.
    fn arm_or_keep(&self, managed: &Managed, rule: &Arc<ArmedSyscall>) -> Result<(), HostError> {
        if managed.service.is_alive() {
            return managed
                .arm(std::slice::from_ref(rule), &self.events)
                .map(|_| ());
        }
        managed.supervision().rules.push(rule.clone());
        Ok(())
    }
}

/// Who may connect to whom across the cut.
fn ways(decl: &CutDecl) -> [(&str, &str); 2] {
    let (a, b) = (decl.ends.0.as_str(), decl.ends.1.as_str());
    [(a, b), (b, a)]
}
