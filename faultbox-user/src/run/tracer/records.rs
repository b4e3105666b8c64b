//! What streams out of the kernel, as events.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use faultbox_ebpf_common::{
    Address, COMPAT, CallRecord, ConnectRecord, Header, ProcessRecord, kind,
};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde_json::{Map, Value};

use crate::sys::names;
use crate::sys::path::lexical;

/// A record in an event's shape.
#[derive(Debug, PartialEq)]
pub(super) struct Seen {
    /// The event's type.
    pub(super) kind: &'static str,
    /// The service.
    pub(super) service: Option<String>,
    /// Its details.
    pub(super) fields: Map<String, Value>,
    /// The rule whose hit it is, if it is one.
    pub(super) rule: Option<u64>,
}

impl Seen {
    /// Makes it the event that every system call is which a fault has decided.
    pub(super) fn hit(&mut self, fault: &str, label: Option<&str>, errno: &str) {
        self.kind = "syscall";
        for surplus in ["proto", "via", "ok", "injected", "comm"] {
            self.fields.remove(surplus);
        }
        let mut set = |name: &str, value: &str| {
            self.fields.insert(name.to_owned(), value.into());
        };
        set("syscall", "connect");
        set("fault", fault);
        set("action", "deny");
        set("errno", errno);
        set("mechanism", "ebpf");
        if let Some(label) = label {
            set("label", label);
        }
    }
}

/// Reads one record; `None` if it is of no kind or size that is known here.
pub(super) fn read(bytes: &[u8], service: impl Fn(u32) -> Option<String>) -> Option<Seen> {
    let mut reader = Reader(bytes);
    let header = reader.header()?;
    let mut fields = Map::new();
    fields.insert("pid".into(), header.pid.into());
    if header.tid != 0 {
        fields.insert("tid".into(), header.tid.into());
        fields.insert("comm".into(), text(&header.comm).into());
    }
    let mut rule = None;
    let kind = match header.kind {
        kind::SYSCALL => {
            let call = reader.call(header)?;
            let name = call_name(u32::try_from(call.nr).unwrap_or(u32::MAX));
            fields.insert("syscall".into(), name.into());
            returned(&mut fields, &call);
            "call"
        }
        kind::OPEN => {
            let open = reader.open(header)?;
            name_opened(&mut fields, &open);
            returned(&mut fields, &open.call);
            "open"
        }
        kind::EXEC => {
            let exec = reader.open(header)?;
            if let Some(path) = written_path(&exec) {
                fields.insert("path".into(), path.into());
            }
            "exec"
        }
        kind::FORK => {
            fields.insert("child".into(), reader.process(header)?.value.into());
            "fork"
        }
        kind::EXIT => {
            ended(&mut fields, reader.process(header)?.value);
            "exit"
        }
        kind::CONNECTED | kind::FAILED | kind::CLOSED | kind::REFUSED => {
            let record = reader.connect(header)?;
            rule = (record.value != 0).then_some(record.value);
            connection(&mut fields, &record);
            match header.kind {
                kind::CLOSED => "disconnect",
                _ => "connect",
            }
        }
        _ => return None,
    };
    Some(Seen {
        kind,
        service: service(header.slot),
        fields,
        rule,
    })
}

/// A call's name as specs know it; those without one go by their number, and those of 32-bit programs on a 64-bit machine, whose numbers
/// are others, by that.
pub(super) fn call_name(nr: u32) -> String {
    if nr & COMPAT != 0 {
        return format!("compat_{}", nr & !COMPAT);
    }
    names::syscall_name(nr.into()).map_or_else(|| format!("syscall_{nr}"), str::to_owned)
}

/// What a call returned, as every event about one says it.
fn returned(fields: &mut Map<String, Value>, call: &CallRecord) {
    if (-4095..0).contains(&call.returned) {
        let errno = Errno::from_raw(i32::try_from(-call.returned).unwrap_or(0));
        fields.insert("errno".into(), format!("{errno:?}").into());
    }
    fields.insert("returned".into(), call.returned.into());
    let us = call.duration_ns as f64 / 1e3;
    fields.insert("duration_us".into(), us.into());
}

/// A status as wait(2) has it.
fn ended(fields: &mut Map<String, Value>, status: i64) {
    // The kernel does not let it be known.
    let Ok(status) = u32::try_from(status) else {
        return;
    };
    match status & 0x7f {
        0 => {
            fields.insert("code".into(), (status >> 8 & 0xff).into());
        }
        signal => {
            let name = i32::try_from(signal)
                .ok()
                .and_then(|s| Signal::try_from(s).ok());
            let name = name.map_or_else(|| signal.to_string(), |s| s.as_str().to_owned());
            fields.insert("signal".into(), name.into());
        }
    }
}

fn connection(fields: &mut Map<String, Value>, record: &ConnectRecord) {
    let proto = match record.wanted.proto {
        6 => "tcp",
        17 => "udp",
        _ => "other",
    };
    fields.insert("proto".into(), proto.into());
    fields.insert("peer".into(), socket(&record.wanted).into());
    if record.sent != record.wanted {
        fields.insert("via".into(), socket(&record.sent).into());
    }
    if record.local_port != 0 {
        fields.insert("local_port".into(), record.local_port.into());
    }
    match record.header.kind {
        kind::REFUSED => {
            let errno = Errno::from_raw(record.errno as i32);
            fields.insert("errno".into(), format!("{errno:?}").into());
            fields.insert("injected".into(), true.into());
        }
        kind::CLOSED => {
            fields.insert("sent_bytes".into(), record.sent_bytes.into());
            fields.insert("received_bytes".into(), record.received_bytes.into());
        }
        kind::FAILED if record.errno != 0 => {
            let errno = Errno::from_raw(record.errno as i32);
            fields.insert("errno".into(), format!("{errno:?}").into());
        }
        _ => {}
    }
    if record.header.kind != kind::CLOSED {
        let ok = record.header.kind == kind::CONNECTED;
        fields.insert("ok".into(), ok.into());
    }
}

fn socket(address: &Address) -> String {
    let mut octets = [0; 16];
    for (to, word) in octets.chunks_exact_mut(4).zip(address.ip) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    let ip = IpAddr::V6(Ipv6Addr::from(octets)).to_canonical();
    let port = u16::try_from(address.port).unwrap_or(0);
    SocketAddr::new(ip, port).to_string()
}

/// An [`OpenRecord`](faultbox_ebpf_common::OpenRecord), with as much of the path as there is.
struct Open<'a> {
    call: CallRecord,
    directory: i32,
    /// As the program wrote it; `None` if it could not be read.
    written: Option<&'a [u8]>,
}

fn written_path(open: &Open<'_>) -> Option<String> {
    Some(String::from_utf8_lossy(open.written?).into_owned())
}

/// Says which file an open was about. The record comes a moment after the call:
///
/// - If the call returned a descriptor that still has a file of this name, the kernel knows where that is.
/// - A relative path is else completed by what its directory is now, which the process may have changed since.
/// - Where nothing is left to ask, only what the program wrote can be said.
///
/// An absolute path is told as it was written, without `.`, `..` and empty parts; what the kernel knows of it stands beside, if it
/// differs: links in it have been followed there.
fn name_opened(fields: &mut Map<String, Value>, open: &Open<'_>) {
    let Some(written) = written_path(open) else {
        return;
    };
    let written = Path::new(&written);
    let found = found_path(open, written);
    let text = |path: &Path| Value::from(path.to_string_lossy());
    if written.is_absolute() {
        let path = lexical(Path::new("/"), written);
        if let Some(found) = found.filter(|found| *found != path) {
            fields.insert("resolved".into(), text(&found));
        }
        fields.insert("path".into(), text(&path));
        return;
    }
    let guessed = || {
        let base = match open.directory {
            libc::AT_FDCWD => "cwd".to_owned(),
            fd => format!("fd/{fd}"),
        };
        Some(lexical(&link_of(open, &base)?, written))
    };
    match found.or_else(guessed) {
        Some(path) => fields.insert("path".into(), text(&path)),
        None => fields.insert("written".into(), text(written)),
    };
}

/// What the returned descriptor leads to, if it is still a file of the name that the program wrote.
fn found_path(open: &Open<'_>, written: &Path) -> Option<PathBuf> {
    let fd = u32::try_from(open.call.returned).ok()?;
    let name = written.file_name()?;
    let found = link_of(open, &format!("fd/{fd}"))?;
    (found.is_absolute() && found.file_name() == Some(name)).then_some(found)
}

/// A link of the thread that made the call, or if that has ended, of its process.
fn link_of(open: &Open<'_>, name: &str) -> Option<PathBuf> {
    let header = &open.call.header;
    [header.tid, header.pid]
        .iter()
        .find_map(|id| std::fs::read_link(format!("/proc/{id}/{name}")).ok())
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Takes fields from the front, in the order in which the records declare them.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.take().map(i64::from_ne_bytes)
    }

    fn header(&mut self) -> Option<Header> {
        Some(Header {
            kind: self.u32()?,
            slot: self.u32()?,
            at_ns: self.u64()?,
            pid: self.u32()?,
            tid: self.u32()?,
            comm: self.take()?,
        })
    }

    fn call(&mut self, header: Header) -> Option<CallRecord> {
        Some(CallRecord {
            header,
            nr: self.u64()?,
            returned: self.i64()?,
            duration_ns: self.u64()?,
        })
    }

    fn open(&mut self, header: Header) -> Option<Open<'_>> {
        let call = self.call(header)?;
        let directory = self.take().map(i32::from_ne_bytes)?;
        let length = self.u32()? as usize;
        Some(Open {
            call,
            directory,
            written: self.0.get(..length)?.strip_suffix(&[0]),
        })
    }

    fn process(&mut self, header: Header) -> Option<ProcessRecord> {
        Some(ProcessRecord {
            header,
            value: self.i64()?,
        })
    }

    fn address(&mut self) -> Option<Address> {
        Some(Address {
            ip: [self.u32()?, self.u32()?, self.u32()?, self.u32()?],
            port: self.u32()?,
            proto: self.u32()?,
        })
    }

    fn connect(&mut self, header: Header) -> Option<ConnectRecord> {
        Some(ConnectRecord {
            header,
            wanted: self.address()?,
            sent: self.address()?,
            local_port: self.u32()?,
            errno: self.u32()?,
            value: self.u64()?,
            sent_bytes: self.u64()?,
            received_bytes: self.u64()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn header(kind: u32) -> Vec<u8> {
        let mut bytes = vec![];
        for word in [kind, 7] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(5u64.to_ne_bytes());
        for word in [100u32, 101] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(b"postgres\0\0\0\0\0\0\0\0");
        bytes
    }

    fn seen(bytes: &[u8]) -> Option<Seen> {
        read(bytes, |slot| (slot == 7).then(|| "db".to_owned()))
    }

    #[test]
    fn calls_opens_and_ends_become_events() {
        let mut call = header(kind::OPEN);
        call.extend(257u64.to_ne_bytes());
        call.extend((-13i64).to_ne_bytes());
        call.extend(2_500u64.to_ne_bytes());
        call.extend(libc::AT_FDCWD.to_ne_bytes());
        call.extend(7u32.to_ne_bytes());
        call.extend(b"/tmp/x\0");
        let event = seen(&call).unwrap();
        assert_eq!((event.kind, event.service.as_deref()), ("open", Some("db")));
        assert_eq!(
            Value::Object(event.fields),
            json!({"pid": 100, "tid": 101, "comm": "postgres", "path": "/tmp/x", "errno": "EACCES", "returned": -13, "duration_us": 2.5})
        );
        let mut end = header(kind::EXIT);
        end.extend(9i64.to_ne_bytes());
        assert_eq!(seen(&end).unwrap().fields["signal"], "SIGKILL");
        let mut end = header(kind::EXIT);
        end.extend((3i64 << 8).to_ne_bytes());
        assert_eq!(seen(&end).unwrap().fields["code"], 3);
        let mut end = header(kind::EXIT);
        end.extend((-1i64).to_ne_bytes());
        assert!(!seen(&end).unwrap().fields.contains_key("code"));
    }

    #[test]
    fn connections_say_where_they_wanted_and_where_they_went() {
        let mut bytes = header(kind::REFUSED);
        let localhost = u32::from_ne_bytes([127, 0, 0, 1]);
        let mapped = u32::from_ne_bytes([0, 0, 255, 255]);
        for word in [
            0, 0, mapped, localhost, 5432, 6, 0, 0, mapped, localhost, 61000, 6, 0, 111,
        ] {
            bytes.extend(word.to_ne_bytes());
        }
        for word in [42u64, 0, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        let mut event = seen(&bytes).unwrap();
        assert_eq!(event.fields["peer"], "127.0.0.1:5432");
        assert_eq!(event.fields["via"], "127.0.0.1:61000");
        assert_eq!(
            (&event.fields["errno"], &event.fields["ok"], event.rule),
            (&json!("ECONNREFUSED"), &json!(false), Some(42))
        );
        event.hit("down", Some("x"), "ECONNREFUSED");
        assert_eq!(event.kind, "syscall");
        assert_eq!(
            Value::Object(event.fields),
            json!({"pid": 100, "tid": 101, "peer": "127.0.0.1:5432", "syscall": "connect", "fault": "down", "action": "deny", "errno": "ECONNREFUSED", "mechanism": "ebpf", "label": "x"})
        );
    }

    /// An open by a process, as the kernel streams it.
    fn opened(pid: u32, directory: i32, returned: i64, path: &str) -> Map<String, Value> {
        let mut bytes = header(kind::OPEN);
        bytes[16..20].copy_from_slice(&pid.to_ne_bytes());
        bytes[20..24].copy_from_slice(&pid.to_ne_bytes());
        bytes.extend(257u64.to_ne_bytes());
        bytes.extend(returned.to_ne_bytes());
        bytes.extend(1_000u64.to_ne_bytes());
        bytes.extend(directory.to_ne_bytes());
        bytes.extend((path.len() as u32 + 1).to_ne_bytes());
        bytes.extend(path.as_bytes());
        bytes.push(0);
        seen(&bytes).unwrap().fields
    }

    #[test]
    fn opened_files_are_named_by_the_descriptor_or_by_their_folder() {
        use std::os::fd::AsRawFd;
        let me = std::process::id();
        let none = i64::from(-libc::ENOENT);
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::fs::write(root.join("real/f"), "").unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        let folder = std::fs::File::open(&root).unwrap();
        let file = std::fs::File::open(root.join("link/f")).unwrap();
        let (folder, fd) = (folder.as_raw_fd(), i64::from(file.as_raw_fd()));
        let real = root.join("real/f").to_string_lossy().into_owned();
        let link = root.join("link/f").to_string_lossy().into_owned();
        // The descriptor is the truth, whatever the folder.
        assert_eq!(opened(me, 1 << 20, fd, "link/f")["path"], real);
        assert_eq!(opened(me, folder, fd, "link/f")["path"], real);
        // It has been closed, or is another file by now: the folder is all there is.
        assert_eq!(opened(me, folder, none, "./link//f")["path"], link);
        assert_eq!(
            opened(me, folder, fd, "x/../other")["path"],
            root.join("other").to_str().unwrap()
        );
        let wanted = std::env::current_dir().unwrap().join("g");
        assert_eq!(
            opened(me, libc::AT_FDCWD, none, "g")["path"],
            wanted.to_str().unwrap()
        );
        // Absolute paths keep their links, and say beside it where those lead.
        let fields = opened(me, libc::AT_FDCWD, fd, &format!("/usr/..//{link}"));
        assert_eq!(
            (&fields["path"], &fields["resolved"]),
            (&json!(link), &json!(real))
        );
        let fields = opened(me, libc::AT_FDCWD, fd, &real);
        assert_eq!(
            (&fields["path"], fields.get("resolved")),
            (&json!(real), None)
        );
        assert_eq!(
            opened(me, libc::AT_FDCWD, none, "/usr/../tmp/./s//rel")["path"],
            "/tmp/s/rel"
        );
        // Nobody is left to ask: no process has this number (proc(5), pid_max).
        let fields = opened(1 << 23, libc::AT_FDCWD, 3, "rel/x");
        assert_eq!(
            (fields.get("path"), &fields["written"]),
            (None, &json!("rel/x"))
        );
    }

    #[test]
    fn what_is_cut_short_or_unknown_is_no_event() {
        let mut whole = header(kind::FORK);
        whole.extend(5i64.to_ne_bytes());
        for cut in 0..whole.len() {
            assert_eq!(seen(&whole[..cut]), None, "{cut}");
        }
        whole[0] = 99;
        assert_eq!(seen(&whole), None);
    }
}
