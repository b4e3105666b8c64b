//! A worker's side: its services, proxies and cuts in the shared maps, and what comes back.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aya::maps::{
    Array, HashMap as KernelHash, Map, MapData, MapError, PerCpuArray, PerCpuValues, Stack,
};
use faultbox_contract::Transport;
use faultbox_ebpf_common::{
    BUCKETS, BY_PROXY, CallKey, CallStats, CutKey, PortKey, REFUSALS, Redirect, RedirectKey,
    Refusal, Refusals, Service, bucket_bounds, lost, want,
};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use serde_json::Value;

use super::addresses::{address, ways_to, words};
use super::cuts::{CutRule, Cuts, Flow};
use super::lent::Lent;
use super::records;
use super::stream::{RING_BYTES, SMALL_RING_BYTES, Stream};
use super::{Feature, Share};
use crate::events::{Lost, Sink};
use crate::plan::{CallCount, Dest, InterfaceDecl, SyscallAction};
use crate::run::supervisor::ArmedSyscall;
use crate::run::{fleet, procs};
use crate::sys::inherit;

/// How many services one test may have: slots are numbered so that no two tests of a run share one.
const SERVICES_PER_TEST: u32 = 1024;

pub(super) type Hash<K, V> = KernelHash<MapData, K, V>;

/// A worker's part of the kernel's tables.
pub struct Watch {
    worker: u32,
    features: Vec<Feature>,
    stream: Stream,
    /// What of every service is streamed: a set of `faultbox_ebpf_common::want::*`.
    wants: u32,
    tables: Mutex<Tables>,
    names: HashMap<u32, String>,
    /// Which interface stands at an address, as events show addresses.
    interfaces: Mutex<HashMap<SocketAddr, String>>,
    sink: Arc<dyn Sink>,
    lent: Lent,
    /// The processes that have ended lately: when the last two threads of one end at the same time, each may take itself for the last.
    ended: Mutex<HashMap<u32, Instant>>,
}

struct Tables {
    services: Hash<u64, Service>,
    /// Another number each time that `services` has changed: threads remember whose they are until then.
    epoch: Array<MapData, u64>,
    changes: u32,
    redirects: Hash<RedirectKey, Redirect>,
    /// Of interfaces and proxies.
    declared: Hash<PortKey, u32>,
    /// Of everybody else.
    ports: Hash<PortKey, u32>,
    cuts: Cuts,
    armed: Array<MapData, u64>,
    refusals: Hash<u32, Refusals>,
    refused: Hash<u64, u64>,
    stats: PerCpuArray<MapData, CallStats>,
    /// Where in `stats` a service's calls of one number are counted.
    places: Hash<CallKey, u32>,
    /// The places that nobody has.
    free: Stack<MapData, u32>,
    lost: Array<MapData, u64>,
    /// What the counters of losses showed at the beginning: the test before us may have had the same ring, and tests without one share
    /// their counters.
    lost_before: [u64; lost::CAUSES as usize],
    /// The refusing rules of this worker, oldest first.
    refusing: Vec<RefusingRule>,
    /// What is told of a rule that refused; kept when it is lifted, because its last records may still be on their way.
    told: HashMap<u64, Told>,
}

#[derive(Debug, Clone)]
struct Told {
    fault: String,
    label: Option<String>,
    errno: &'static str,
}

#[derive(Debug, Clone)]
struct RefusingRule {
    /// See [`Watch::key`].
    id: u64,
    slot: u32,
    dest: Dest,
    errno: u32,
}

impl Watch {
    /// Takes over what the runner shares. `services` are all services of the test, remote ones included, in the order that gives
    /// them their numbers. `streams` are the types of events (of `crate::events::FROM_KERNEL`) that somebody may ask for; `sink` gets them,
    /// from a thread of its own, for as long as the process lives.
    ///
    /// # Errors
    /// Descriptors that were not inherited, or maps that are not what they should be: why, as a lower-case fragment.
    pub fn adopt(
        share: &Share,
        worker: u64,
        services: &[&str],
        streams: &BTreeSet<&'static str>,
        sink: Arc<dyn Sink>,
    ) -> Result<Arc<Watch>, String> {
        let worker = u32::try_from(worker)
            .ok()
            .filter(|w| *w < BY_PROXY / SERVICES_PER_TEST - 1)
            .ok_or("too many tests in one run")?;
        if services.len() >= SERVICES_PER_TEST as usize {
            return Err(format!("more than {SERVICES_PER_TEST} services"));
        }
        let mut maps = HashMap::new();
        let lent = Lent::take(&share.lent)?;
        for (name, fd) in &share.maps {
            let fd = inherit::take(*fd).map_err(|e| format!("map `{name}`: {e}"))?;
            maps.insert(name.as_str(), fd);
        }
        let mut take = |name: &str| -> Result<MapData, String> {
            let fd: OwnedFd = maps
                .remove(name)
                .ok_or_else(|| format!("map `{name}` was not inherited"))?;
            MapData::from_fd(fd).map_err(|e| wrong(name, &e))
        };
        let tables = Tables {
            services: hash("SERVICES", take("SERVICES")?)?,
            epoch: array("EPOCH", take("EPOCH")?)?,
            changes: 0,
            redirects: hash("REDIRECTS", take("REDIRECTS")?)?,
            declared: hash("DECLARED", take("DECLARED")?)?,
            ports: KernelHash::try_from(Map::LruHashMap(take("PORTS")?))
                .map_err(|e| wrong("PORTS", &e))?,
            cuts: Cuts::new(hash("CUTS", take("CUTS")?)?),
            armed: array("ARMED", take("ARMED")?)?,
            refusals: hash("REFUSALS", take("REFUSALS")?)?,
            refused: hash("REFUSED", take("REFUSED")?)?,
            stats: PerCpuArray::try_from(Map::PerCpuArray(take("STATS")?))
                .map_err(|e| wrong("STATS", &e))?,
            places: hash("PLACES", take("PLACES")?)?,
            free: Stack::try_from(Map::Stack(take("FREE")?)).map_err(|e| wrong("FREE", &e))?,
            lost: array("LOST", take("LOST")?)?,
            lost_before: [0; lost::CAUSES as usize],
            refusing: vec![],
            told: HashMap::new(),
        };
        let place = match share.ring {
            Some(index) => Some((index, take("STREAMS")?)),
            None => None,
        };
        let stream = Stream::new(place)?;
        let watch = Arc::new(Watch {
            worker,
            features: share.features.clone(),
            wants: match stream.is_possible() {
                true => wants(streams),
                false => 0,
            },
            stream,
            tables: Mutex::new(tables),
            names: services
                .iter()
                .zip(1..)
                .map(|(name, n)| (worker * SERVICES_PER_TEST + n, (*name).to_owned()))
                .collect(),
            interfaces: Mutex::default(),
            sink,
            lent,
            ended: Mutex::default(),
        });
        let before = watch.losses();
        watch.tables().lost_before = before;
        if watch.stream.is_possible() && !streams.is_empty() {
            watch.open(RING_BYTES)?;
        }
        Ok(watch)
    }

    /// Can anything be streamed?
    pub fn streams(&self) -> bool {
        self.stream.is_possible()
    }

    /// Attaches the programs that were lent for it, or detaches them.
    ///
    /// # Errors
    /// The kernel refuses: why, as a lower-case fragment.
    pub fn attach_lent(&self, on: bool) -> Result<(), String> {
        self.lent.attach(on)
    }

    /// Is this group of programs at work?
    pub fn has(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }

    /// Makes a service known by its cgroup. From then on its calls are counted and its connections redirected. With
    /// `calls`, every call of it is streamed as well; what is in `spared` (of `want::*`) is not, whoever may ask for it. Said again, it
    /// changes that.
    ///
    /// # Errors
    /// The cgroup is gone, or the kernel has no room.
    pub fn service(
        self: &Arc<Self>,
        name: &str,
        cgroup: &Path,
        calls: bool,
        spared: u32,
    ) -> Result<(), String> {
        // A version 2 cgroup's id is its inode's number (bpf_get_current_cgroup_id in bpf-helpers(7)).
        let id = std::fs::metadata(cgroup)
            .map_err(|e| format!("{}: {e}", cgroup.display()))?
            .ino();
        if calls && self.streams() {
            self.open(RING_BYTES)?;
        }
        let service = Service {
            slot: self.slot(name)?,
            worker: self.worker,
            ring: self.stream.index(),
            wants: !spared
                & match calls && self.streams() {
                    true => self.wants | want::SYSCALL,
                    false => self.wants,
                },
        };
        let mut tables = self.tables();
        tables
            .services
            .insert(id, service, 0)
            .map_err(|e| wrong("SERVICES", &e))?;
        tables.changed(self.worker)
    }

    /// Makes an interface's proxy known: what other services send to `real` goes there, in what its protocol travels in. Said again
    /// with another address of the same server, that does, too.
    ///
    /// # Errors
    /// The kernel has no room.
    pub fn interface(
        &self,
        service: &str,
        interface: &InterfaceDecl,
        real: SocketAddr,
    ) -> Result<(), String> {
        let owner = self.slot(service)?;
        let proxy = interface.proxy_addr;
        for addr in proxy.into_iter().chain([real]) {
            for ip in ways_to(addr.ip()) {
                let name = format!("{service}.{}", interface.name);
                self.interfaces()
                    .insert(SocketAddr::new(ip, addr.port()), name);
            }
        }
        // A socket that is sent to an IPv6 address may speak nothing else.
        let by_ipv6 = proxy
            .filter(|p| real.ip().to_canonical().is_ipv6() && procs::accepts_by_ipv6(p.port()))
            .map(|p| SocketAddr::from((Ipv6Addr::LOCALHOST, p.port())));
        let mut tables = self.tables();
        for proto in protos(interface.protocol) {
            let by_ipv6 = by_ipv6.filter(|_| i64::from(proto) == i64::from(libc::IPPROTO_TCP));
            let port = |port: u16| PortKey {
                worker: self.worker,
                proto,
                port: port.into(),
            };
            tables
                .declared
                .insert(port(real.port()), owner, 0)
                .map_err(|e| wrong("DECLARED", &e))?;
            let Some(proxy) = proxy else { continue };
            tables
                .declared
                .insert(port(proxy.port()), owner | BY_PROXY, 0)
                .map_err(|e| wrong("DECLARED", &e))?;
            for ip in ways_to(real.ip()) {
                let key = RedirectKey {
                    worker: self.worker,
                    to: address(SocketAddr::new(ip, real.port()), proto),
                };
                let redirect = Redirect {
                    to: address(by_ipv6.unwrap_or(proxy), proto),
                    owner,
                };
                tables
                    .redirects
                    .insert(key, redirect, 0)
                    .map_err(|e| wrong("REDIRECTS", &e))?;
            }
        }
        Ok(())
    }

    /// The service that a connection comes from, by its own port. `None` if it is none of the services, or not known.
    pub fn source(&self, peer: SocketAddr, proto: u32) -> Option<&str> {
        let key = PortKey {
            worker: self.worker,
            proto,
            port: peer.port().into(),
        };
        let slot = self.tables().ports.get(&key, 0).ok()?;
        self.names.get(&slot).map(String::as_str)
    }

    /// Puts a cut in force: when this returns, packets meet it.
    ///
    /// # Errors
    /// A service that is not known, or no room in the kernel; nothing is in force then.
    pub fn cut(&self, rule: CutRule) -> Result<(), String> {
        let keys = self.keys(&rule)?;
        let mut tables = self.tables();
        tables.cuts.put(rule, keys)?;
        // From now on packets are looked at, for the rest of the run: to take that back would need to know that no other test of it
        // is just about to cut something, too.
        tables.armed.set(0, 1, 0).map_err(|e| wrong("ARMED", &e))
    }

    /// Lifts a cut and says how many packets it took. The flows fall back to the cut before it, or are whole again.
    pub fn heal(&self, id: u64) -> u64 {
        self.tables().cuts.lift(id)
    }

    /// How many packets a cut has taken.
    pub fn dropped(&self, id: u64) -> u64 {
        self.tables().cuts.dropped(id)
    }

    /// Refuses a service's connects to the rule's `dest` with its errno from now on, and reports each as the rule's hit, for which it
    /// makes the ring if there is none yet.
    ///
    /// # Errors
    /// More destinations than the kernel's table holds, a service that is not known, or a rule that is no such refusal; nothing is in
    /// force then.
    pub fn refuse(self: &Arc<Self>, service: &str, rule: &ArmedSyscall) -> Result<(), String> {
        let (Some(dest), SyscallAction::Deny { errno, name }) =
            (&rule.rule.dest, &rule.rule.action)
        else {
            return Err("only a refusal of certain destinations can be the kernel's".to_owned());
        };
        let (id, slot) = (self.key(rule.id), self.slot(service)?);
        self.open(SMALL_RING_BYTES)?;
        let mut tables = self.tables();
        let told = Told {
            fault: rule.fault.clone(),
            label: rule.rule.label.clone(),
            errno: name,
        };
        tables.told.insert(id, told);
        tables
            .refused
            .insert(id, 0, 0)
            .map_err(|e| wrong("REFUSED", &e))?;
        tables.refusing.push(RefusingRule {
            id,
            slot,
            dest: dest.clone(),
            errno: errno.unsigned_abs(),
        });
        let done = tables.write_refusals(slot);
        if done.is_err() {
            tables.refusing.retain(|r| r.id != id);
            let _ = tables.write_refusals(slot);
            let _ = tables.refused.remove(&id);
        }
        done
    }

    /// Ends a refusal.
    pub fn admit(&self, id: u64) {
        let mut tables = self.tables();
        let key = self.key(id);
        let Some(at) = tables.refusing.iter().position(|r| r.id == key) else {
            return;
        };
        let rule = tables.refusing.remove(at);
        let _ = tables.write_refusals(rule.slot);
    }

    /// How often a rule has refused.
    pub fn refusals(&self, id: u64) -> u64 {
        self.tables().refused.get(&self.key(id), 0).unwrap_or(0)
    }

    /// What a service has called so far, the most called first.
    pub fn calls(&self, service: &str) -> Vec<CallCount> {
        let Ok(slot) = self.slot(service) else {
            return vec![];
        };
        let tables = self.tables();
        let mut found: Vec<CallCount> = tables
            .places
            .iter()
            .filter_map(Result::ok)
            .filter(|(key, _)| key.slot == slot)
            .filter_map(|(key, place)| {
                let per_cpu = tables.stats.get(&place, 0).ok()?;
                Some(sum(key.nr, per_cpu.iter()))
            })
            .collect();
        found.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.name.cmp(&b.name)));
        found
    }

    /// Turns what has streamed in into events.
    pub fn drain(&self) {
        self.stream.drain(|item| {
            let Some(mut record) = records::read(item, |slot| self.names.get(&slot).cloned())
            else {
                return;
            };
            if record.kind == "exit" && !self.is_first_end(&record.fields["pid"]) {
                return;
            }
            if matches!(record.kind, "connect" | "disconnect")
                && let Some(interface) = self.interface_at(&record.fields["peer"])
            {
                record.fields.insert("interface".into(), interface.into());
            }
            if let Some(told) = record
                .rule
                .and_then(|id| self.tables().told.get(&id).cloned())
            {
                record.hit(&told.fault, told.label.as_deref(), told.errno);
            }
            self.sink.record(
                record.kind,
                record.service.as_deref(),
                Value::Object(record.fields),
            );
        });
        self.sink.lost_before(self.lost());
    }

    /// Has nothing been heard of this process' end yet? No process has the same id so soon again.
    fn is_first_end(&self, pid: &Value) -> bool {
        let Some(pid) = pid.as_u64().and_then(|pid| u32::try_from(pid).ok()) else {
            return true;
        };
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.retain(|_, at| at.elapsed() < Duration::from_secs(1));
        ended.insert(pid, Instant::now()).is_none()
    }

    /// Makes the ring if there is none, and has it drained on a thread from then on.
    fn open(self: &Arc<Self>, bytes: u32) -> Result<(), String> {
        let Some(fd) = self.stream.open(bytes)? else {
            return Ok(());
        };
        let watch = Arc::downgrade(self);
        // Without the thread, records are still read whenever somebody asks for events.
        let _ = std::thread::Builder::new()
            .name("kernel events".to_owned())
            .spawn(move || {
                loop {
                    let mut poll = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                    let _ = nix::poll::poll(&mut poll, PollTimeout::NONE);
                    match watch.upgrade() {
                        Some(watch) => watch.drain(),
                        None => return,
                    }
                }
            });
        Ok(())
    }

    /// How many records and counts were lost, by cause.
    pub fn lost(&self) -> Lost {
        let losses = self.losses();
        let before = self.tables().lost_before;
        let of = |cause: u32| losses[cause as usize].saturating_sub(before[cause as usize]);
        Lost {
            unread: of(lost::RING_FULL),
            no_room: of(lost::STATS_FULL),
            no_memory: of(lost::NO_MEMORY),
            not_run: of(lost::NOT_RUN),
        }
    }

    /// What the counters show.
    fn losses(&self) -> [u64; lost::CAUSES as usize] {
        let tables = self.tables();
        let of = |cause| {
            let at = self.stream.index() * lost::CAUSES + cause;
            tables.lost.get(&at, 0).unwrap_or(0)
        };
        std::array::from_fn(|cause| of(cause as u32))
    }

    /// Takes everything of this worker out of the tables again, so that a long run does not fill them.
    pub fn withdraw(&self) {
        let mine = |slot: u32| self.names.contains_key(&(slot & !BY_PROXY));
        let mut tables = self.tables();
        withdraw(&mut tables.services, |_, s: &Service| {
            s.worker == self.worker
        });
        // Without it, threads that are still there count on.
        let _ = tables.changed(self.worker);
        withdraw(&mut tables.redirects, |k: &RedirectKey, _| {
            k.worker == self.worker
        });
        withdraw(&mut tables.declared, |k: &PortKey, _| {
            k.worker == self.worker
        });
        withdraw(&mut tables.ports, |k: &PortKey, _| k.worker == self.worker);
        tables.cuts.withdraw(mine);
        withdraw(&mut tables.refusals, |slot: &u32, _| mine(*slot));
        withdraw(&mut tables.refused, |rule: &u64, _| {
            rule >> 32 == u64::from(self.worker)
        });
        tables.vacate(mine);
    }

    /// A rule's id in the tables that all tests of the run share: ids are unique in a test only.
    fn key(&self, rule: u64) -> u64 {
        u64::from(self.worker) << 32 | rule
    }

    fn slot(&self, service: &str) -> Result<u32, String> {
        self.names
            .iter()
            .find(|(_, name)| *name == service)
            .map(|(slot, _)| *slot)
            .ok_or_else(|| format!("there is no service `{service}`"))
    }

    fn keys(&self, rule: &CutRule) -> Result<Vec<CutKey>, String> {
        let key = |flow: &Flow| {
            Ok(CutKey {
                from: self.slot(&flow.from)?,
                to: self.slot(&flow.to)?,
            })
        };
        rule.flows.iter().map(key).collect()
    }

    /// The interface that stands at an address.
    fn interface_at(&self, peer: &Value) -> Option<String> {
        let peer: SocketAddr = peer.as_str()?.parse().ok()?;
        self.interfaces().get(&peer).cloned()
    }

    fn interfaces(&self) -> MutexGuard<'_, HashMap<SocketAddr, String>> {
        self.interfaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    /// Has every thread look up again whose it is.
    fn changed(&mut self, worker: u32) -> Result<(), String> {
        self.changes += 1;
        // Workers share the map, and must not write what another has written before.
        let epoch = u64::from(worker + 1) << 32 | u64::from(self.changes);
        self.epoch.set(0, epoch, 0).map_err(|e| wrong("EPOCH", &e))
    }

    /// Gives back the places where the calls of these services were counted.
    fn vacate(&mut self, mine: impl Fn(u32) -> bool) {
        let places: Vec<(CallKey, u32)> = self
            .places
            .iter()
            .filter_map(Result::ok)
            .filter(|(key, _)| mine(key.slot))
            .collect();
        let cpus = aya::util::nr_cpus().unwrap_or(0);
        for (key, place) in places {
            // A place that cannot be cleared is lost to the run.
            let cleared = PerCpuValues::try_from(vec![CallStats::EMPTY; cpus])
                .is_ok_and(|nothing| self.stats.set(place, nothing, 0).is_ok());
            if self.places.remove(&key).is_ok() && cleared {
                let _ = self.free.push(place, 0);
            }
        }
    }

    fn write_refusals(&mut self, slot: u32) -> Result<(), String> {
        let mut list: Vec<Refusal> = vec![];
        // The most recently applied decides.
        for rule in self.refusing.iter().rev().filter(|r| r.slot == slot) {
            list.extend(refusals(rule));
        }
        if list.is_empty() {
            return match self.refusals.remove(&slot) {
                Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
                Err(e) => Err(wrong("REFUSALS", &e)),
            };
        }
        if list.len() > REFUSALS {
            return Err(format!(
                "{} destinations, and the kernel's table has room for {REFUSALS} per service",
                list.len()
            ));
        }
        let mut refusals = Refusals {
            count: list.len() as u32,
            reserved: 0,
            list: [Refusal::default(); REFUSALS],
        };
        refusals.list[..list.len()].copy_from_slice(&list);
        self.refusals
            .insert(slot, refusals, 0)
            .map_err(|e| wrong("REFUSALS", &e))
    }
}

/// What is streamed, so that events of these types can be had.
fn wants(streams: &BTreeSet<&'static str>) -> u32 {
    streams
        .iter()
        .map(|kind| match *kind {
            "open" => want::OPEN,
            "fork" | "exec" | "exit" => want::PROCESS,
            "connect" | "disconnect" => want::CONNECT,
            // Calls are streamed while a trace asks for them.
            _ => 0,
        })
        .fold(0, |all, one| all | one)
}

/// The protocols of RFC 790 that an interface's own is carried by.
fn protos(protocol: &str) -> impl Iterator<Item = u32> {
    let transport = fleet::protocol(protocol).map_or(Transport::Tcp, |p| p.transport());
    [
        (transport.has_tcp(), libc::IPPROTO_TCP),
        (transport.has_udp(), libc::IPPROTO_UDP),
    ]
    .into_iter()
    .filter_map(|(carries, proto)| carries.then_some(proto.unsigned_abs()))
}

/// Adds up what the CPUs have counted.
fn sum<'a>(nr: u32, per_cpu: impl Iterator<Item = &'a CallStats>) -> CallCount {
    let mut sum = CallStats::EMPTY;
    let mut histogram = [0u64; BUCKETS];
    for stats in per_cpu {
        sum.count += stats.count;
        sum.errors += stats.errors;
        sum.total_ns += stats.total_ns;
        for (total, n) in histogram.iter_mut().zip(stats.histogram) {
            *total += u64::from(n);
        }
    }
    CallCount {
        name: records::call_name(nr),
        count: sum.count,
        errors: sum.errors,
        total_ns: sum.total_ns,
        pairs: histogram
            .into_iter()
            .enumerate()
            .filter(|(_, n)| *n > 0)
            .map(|(at, n)| (bucket_bounds(at).1.max(1), n))
            .collect(),
    }
}

fn refusals(rule: &RefusingRule) -> Vec<Refusal> {
    let refusal = |ip: IpAddr, prefix: u8, port: u16| {
        let (ip, prefix) = match ip.to_canonical() {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped(), 96 + u32::from(prefix)),
            IpAddr::V6(v6) => (v6, u32::from(prefix)),
        };
        let mask = Ipv6Addr::from(u128::MAX.checked_shl(128 - prefix).unwrap_or(0));
        let (ip, mask) = (words(IpAddr::V6(ip)), words(IpAddr::V6(mask)));
        Refusal {
            ip: std::array::from_fn(|i| ip[i] & mask[i]),
            mask,
            port: port.into(),
            errno: rule.errno,
            rule: rule.id,
        }
    };
    match &rule.dest {
        Dest::Addrs(addrs) => addrs
            .iter()
            .map(|a| {
                let full = if a.ip().to_canonical().is_ipv4() {
                    32
                } else {
                    128
                };
                refusal(a.ip(), full, a.port())
            })
            .collect(),
        Dest::Cidr { net, prefix } => vec![refusal(*net, *prefix, 0)],
    }
}

fn hash<K: aya::Pod, V: aya::Pod>(name: &str, data: MapData) -> Result<Hash<K, V>, String> {
    KernelHash::try_from(Map::HashMap(data)).map_err(|e| wrong(name, &e))
}

fn array<V: aya::Pod>(name: &str, data: MapData) -> Result<Array<MapData, V>, String> {
    Array::try_from(Map::Array(data)).map_err(|e| wrong(name, &e))
}

pub(super) fn withdraw<K: aya::Pod, V: aya::Pod>(
    map: &mut Hash<K, V>,
    mine: impl Fn(&K, &V) -> bool,
) {
    let keys: Vec<K> = map
        .iter()
        .filter_map(Result::ok)
        .filter(|(k, v)| mine(k, v))
        .map(|(k, _)| k)
        .collect();
    for key in keys {
        let _ = map.remove(&key);
    }
}

pub(super) fn wrong(what: &str, error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{what}: {error}: {cause}"),
        None => format!("{what}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faultbox_ebpf_common::COMPAT;

    #[test]
    fn refusals_are_masked() {
        let rule = |dest| RefusingRule {
            id: 7,
            slot: 1,
            dest,
            errno: 111,
        };
        let block = refusals(&rule(Dest::Cidr {
            net: "10.1.2.3".parse().unwrap(),
            prefix: 16,
        }));
        assert_eq!(block[0].ip, words("10.1.0.0".parse().unwrap()));
        assert_eq!(block[0].mask[2], u32::MAX);
        assert_eq!(block[0].mask[3], u32::from_ne_bytes([255, 255, 0, 0]));
        assert_eq!((block[0].port, block[0].rule), (0, 7));
        let all = refusals(&rule(Dest::Cidr {
            net: "::".parse().unwrap(),
            prefix: 0,
        }));
        assert_eq!((all[0].ip, all[0].mask), ([0; 4], [0; 4]));
        let exact = refusals(&rule(Dest::Addrs(vec!["[::1]:80".parse().unwrap()])));
        assert_eq!((exact[0].mask, exact[0].port), ([u32::MAX; 4], 80));
    }

    #[test]
    fn counts_of_all_cpus_add_up() {
        let mut one = CallStats::EMPTY;
        one.count = 2;
        one.histogram[20] = 2;
        let calls = sum(9999, [one, one].iter());
        assert_eq!(calls.count, 4);
        assert_eq!(calls.pairs, [(bucket_bounds(20).1, 4)]);
        assert_eq!(calls.name, "syscall_9999");
        assert_eq!(sum(COMPAT | 20, [one].iter()).name, "compat_20");
    }
}
