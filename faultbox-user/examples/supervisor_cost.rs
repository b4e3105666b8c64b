//! What supervision costs, as numbers: `cargo run --release --example supervisor_cost`.
//!
//! The example launches itself as the service under test. Ratios are taken within one run.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use faultbox::plan::{Existing, FdClass, IoUring, SyscallAction, SyscallRule};
use faultbox::run::supervisor::{ArmedSyscall, Supervisor};
use faultbox::sys::launch::{Launch, launch};
use faultbox_contract::TriggerSpec;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        None => measure(),
        Some("pwrite") => pwrite_loop(Path::new(&args[2])),
        Some("fsync") => fsync_loop(Path::new(&args[2])),
        Some(_) => threads(),
    }
}

/// Waits for the file `go`, then prints the nanoseconds of one pwrite; again for each time `go` is made.
fn pwrite_loop(go: &Path) {
    let file = File::options()
        .write(true)
        .open("/dev/null")
        .expect("/dev/null");
    loop {
        wait_for(go);
        let began = Instant::now();
        let calls: u32 = std::fs::read_to_string(go)
            .ok()
            .and_then(|s| s.trim().parse().ok())
            .unwrap_or(100_000);
        for _ in 0..calls {
            let _ = nix::sys::uio::pwrite(&file, &[0; 8], 0);
        }
        println!("{}", began.elapsed().as_nanos() / u128::from(calls));
        let _ = std::fs::remove_file(go);
    }
}

/// The same for the microseconds of each of 200 fsyncs.
fn fsync_loop(go: &Path) {
    let file = File::options()
        .write(true)
        .open("/dev/null")
        .expect("/dev/null");
    wait_for(go);
    let mut text = String::new();
    for _ in 0..200 {
        let began = Instant::now();
        let _ = file.sync_all();
        text += &format!("{}\n", began.elapsed().as_nanos() as f64 / 1e3);
    }
    print!("{text}");
    let _ = std::fs::remove_file(go);
}

fn threads() {
    for _ in 0..50 {
        std::thread::spawn(|| {
            let file = File::options()
                .write(true)
                .open("/dev/null")
                .expect("/dev/null");
            loop {
                let _ = nix::sys::uio::pwrite(&file, &[0; 8], 0);
            }
        });
    }
    std::thread::sleep(Duration::from_secs(3600));
}

fn wait_for(go: &Path) {
    while !go.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Bench {
    pid: i32,
    supervisor: Supervisor,
    go: PathBuf,
    out: PathBuf,
    _dir: tempfile::TempDir,
    _stay: std::sync::mpsc::Sender<()>,
}

impl Bench {
    fn start(mode: &str, static_filter: bool) -> Bench {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (go, out) = (dir.path().join("go"), dir.path().join("out"));
        let argv = vec![
            "bench".to_owned(),
            mode.to_owned(),
            go.display().to_string(),
        ];
        let file = File::create(&out).expect("an output file");
        let (stay, wait) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        // The service dies with the thread that launched it.
        std::thread::spawn(move || {
            let exe = std::env::current_exe().expect("an executable");
            let launched = launch(&Launch {
                program: &exe,
                argv: &argv,
                env: &[],
                cwd: Path::new("/"),
                stdout: file.as_fd(),
                stderr: file.as_fd(),
                user: None,
                cgroup_procs: None,
                io_uring: if static_filter {
                    IoUring::Deny
                } else {
                    IoUring::Auto
                },
                listen: None,
            });
            let _ = tell.send(launched);
            let _ = wait.recv();
        });
        let pid = told
            .recv()
            .expect("the launching thread")
            .expect("the launch")
            .pid;
        let tree = Arc::new(move || vec![pid]);
        Bench {
            pid,
            supervisor: Supervisor::new("bench", tree, IoUring::Auto, Arc::default(), None),
            go,
            out,
            _dir: dir,
            _stay: stay,
        }
    }

    fn run(&self, calls: u32) -> Vec<f64> {
        let _ = std::fs::write(&self.go, calls.to_string());
        while self.go.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let text = std::fs::read_to_string(&self.out).unwrap_or_default();
        text.lines().filter_map(|l| l.parse().ok()).collect()
    }

    fn arm(&self, syscall: &'static str, action: SyscallAction, on: Option<FdClass>) -> Duration {
        let rule = SyscallRule {
            key: syscall.to_owned(),
            syscalls: vec![syscall],
            action,
            trigger: TriggerSpec::default(),
            path: None,
            on,
            dest: None,
            existing: Existing::Keep,
            label: None,
            text: syscall.to_owned(),
        };
        let armed = Arc::new(ArmedSyscall::new(1, "bench".to_owned(), Arc::new(rule), 0));
        let began = Instant::now();
        self.supervisor
            .arm(&[armed])
            .expect("the fault can be armed");
        began.elapsed()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
    }
}

fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q) as usize]
}

fn measure() {
    // Alternating, so that whatever else the machine does falls on both alike.
    let (bare, filtered) = (Bench::start("pwrite", false), Bench::start("pwrite", true));
    let (mut native, mut refusing) = (vec![], vec![]);
    for _ in 0..7 {
        native = bare.run(1_000_000);
        refusing = filtered.run(1_000_000);
    }
    let (a, b) = (quantile(&mut native, 0.5), quantile(&mut refusing, 0.5));
    println!("pwrite(/dev/null), native                       {a:8.0} ns/call");
    println!(
        "  with the io_uring filter, no fault armed      {b:8.0} ns/call  ({:.3} of native speed)",
        a / b
    );
    drop(filtered);
    // Armed on pwrite, shielded by a condition that never holds.
    bare.arm(
        "pwrite64",
        SyscallAction::Deny {
            errno: 5,
            name: "EIO",
        },
        Some(FdClass::Tty),
    );
    let with_lookup = *bare.run(100_000).last().unwrap_or(&0.0);
    let decided = bare.supervisor.meter().quantile_ns(0.5);
    println!(
        "  armed with on=, no match                      {with_lookup:8.0} ns/call  (decision p50 {decided} ns)"
    );
    drop(bare);
    let lifted = Bench::start("pwrite", true);
    lifted.arm(
        "pwrite64",
        SyscallAction::Deny {
            errno: 5,
            name: "EIO",
        },
        None,
    );
    lifted.supervisor.lift(1);
    let trapped = *lifted.run(200_000).last().unwrap_or(&0.0);
    let meter = lifted.supervisor.meter();
    println!(
        "  trapped, no rule in force                     {trapped:8.0} ns/call  (decision p50 {} p99 {} ns)",
        meter.quantile_ns(0.5),
        meter.quantile_ns(0.99)
    );
    drop(lifted);

    let slow = Bench::start("fsync", true);
    slow.arm(
        "fsync",
        SyscallAction::Delay {
            duration: Duration::from_millis(1),
            jitter: Duration::ZERO,
        },
        None,
    );
    let mut took = slow.run(0);
    println!(
        "delay(\"1ms\") as the program sees it: p10 {:.1} p50 {:.1} p90 {:.1} p99 {:.1} us",
        quantile(&mut took, 0.1),
        quantile(&mut took, 0.5),
        quantile(&mut took, 0.9),
        quantile(&mut took, 0.99)
    );
    drop(slow);

    let (mut first, mut widened) = (vec![], vec![]);
    for _ in 0..15 {
        let busy = Bench::start("threads", true);
        std::thread::sleep(Duration::from_millis(200));
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        first.push(ms(busy.arm(
            "pwrite64",
            SyscallAction::Deny {
                errno: 5,
                name: "EIO",
            },
            Some(FdClass::Tty),
        )));
        std::thread::sleep(Duration::from_millis(100));
        widened.push(ms(busy.arm(
            "fsync",
            SyscallAction::Deny {
                errno: 5,
                name: "EIO",
            },
            None,
        )));
    }
    for (what, times) in [("arming", &mut first), ("widening", &mut widened)] {
        println!(
            "{what:8} 50 busy threads: p50 {:.1} max {:.1} ms",
            quantile(times, 0.5),
            quantile(times, 1.0)
        );
    }
}
