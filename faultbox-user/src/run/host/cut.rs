//! Partitions: by eBPF, which drops every packet between two services, or without it, socket by socket, for TCP.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use faultbox_contract::{Transport, TriggerSpec};

use super::{Managed, TestHost};
use crate::plan::report::Blame;
use crate::plan::{CutDecl, Dest, Existing, Launch, ServiceDecl, SyscallAction, SyscallRule};
use crate::run::fleet;
use crate::run::supervisor::cut::{Cut, Direction};
use crate::run::supervisor::{ArmedSyscall, sever, sockets};
use crate::run::tracer::addresses::ways_to;
use crate::run::tracer::{CutRule, Flow, Watch};
use crate::spec::HostError;
use crate::sys::probe;

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

fn refuse(message: String, blame: Blame) -> HostError {
    HostError {
        message,
        help: Some("with eBPF every packet between two services can be cut: `faultbox doctor` tells how to get it".into()),
        blame,
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
    Dest::Addrs(
        all.flat_map(|addr| {
            ways_to(addr.ip())
                .into_iter()
                .map(move |ip| (ip, addr.port()).into())
        })
        .collect(),
    )
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
        let Err(why) = self.packets(&decl.text) else {
            return Ok(());
        };
        if decl.probability.is_some() {
            return Err(why);
        }
        let cannot = |why: String| {
            refuse(
                format!("{} cannot be put in force without eBPF: {why}", decl.text),
                Blame::Environment,
            )
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
        let refused = |e: String| {
            refuse(
                format!("{} cannot be put in force: {e}", decl.text),
                Blame::Environment,
            )
        };
        let Ok(watch) = self.packets(&decl.text) else {
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
        let cuts = |from: &str, to: &str| decl.flows.iter().any(|(f, t)| f == from && t == to);
        // First what is new, so that nothing is made between the look at what exists and the cut.
        for (client, server) in ways(decl) {
            let (Ok((at, managed)), Some(service)) =
                (self.managed(client), self.topology.service(server))
            else {
                continue;
            };
            let dest = reached(service, &self.sockets(server));
            let rule = on_connect(decl, dest, decl.reject && cuts(client, server));
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
        // Proxies are in this process.
        let own = sockets::of(&[std::process::id() as i32]);
        for (client, server) in ways(decl) {
            let Some(service) = self.topology.service(server) else {
                continue;
            };
            let far = self.sockets(server);
            cut.existing(&Direction {
                client: &self.sockets(client),
                server: &reached(service, &far),
                far: [&far, &own],
                requests: cuts(client, server),
                answers: cuts(server, client),
            })
            .map_err(refused)?;
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
