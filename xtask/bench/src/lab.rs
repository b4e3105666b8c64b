//! A service that measures from the inside, driven over HTTP: it is the same program, doing the same work, whether it runs natively,
//! under strace or under faultbox.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use example_http::{Reply, Request};
use serde_json::{Map, Value, json};

use crate::{busy, load};

/// Serves until the process ends. `dir` is where the files go that are written to, and the notes.
pub fn run(name: &str, dir: &Path) -> Result<(), String> {
    let variable = format!("FAULTBOX_{}_HTTP_ADDR", name.to_uppercase());
    let addr = std::env::var(&variable).map_err(|_| format!("{variable} is not set"))?;
    let lab = Lab {
        dir: dir.to_owned(),
        released: (Mutex::default(), Condvar::new()),
        spinners: Mutex::default(),
        ticket: format!("{name}-{}", std::process::id()),
    };
    example_http::serve(crate::bind(&addr)?, move |request| {
        lab.answer(request)
            .unwrap_or_else(|why| Reply::error(400, why))
    })
}

struct Lab {
    dir: PathBuf,
    released: (Mutex<bool>, Condvar),
    spinners: Mutex<Option<Spinners>>,
    /// Keeps the files of labs that run at the same time apart.
    ticket: String,
}

impl Lab {
    fn answer(&self, request: &Request) -> Result<Reply, String> {
        let number = |name: &str| -> Result<u64, String> {
            let text = request.parameter(name).ok_or(format!("no `{name}`"))?;
            crate::parse(&text)
        };
        let word = |name: &str| request.parameter(name).ok_or(format!("no `{name}`"));
        let value = match request.path.as_str() {
            "/" | "/health" | "/slow" => json!({"ok": true}),
            // The test that armed the faults waits here while the measurements are made from outside.
            "/hold" => {
                self.note(&word("note")?).map_err(|e| e.to_string())?;
                let mut released = self.lock(&self.released.0);
                while !*released {
                    released = self
                        .released
                        .1
                        .wait(released)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                json!({})
            }
            "/release" => {
                *self.lock(&self.released.0) = true;
                self.released.1.notify_all();
                json!({})
            }
            "/quit" => std::process::exit(0),
            "/pwrite" => {
                let file = self.file("pwrite");
                busy::pwrite(&file, number("calls")?).map_err(|e| format!("{file}: {e}"))?
            }
            "/getpid" => busy::getpid(number("calls")?),
            "/times" => {
                let file = self.file(&word("file")?);
                times(&file, number("calls")?).map_err(|e| format!("{file}: {e}"))?
            }
            "/spin" => {
                let spinners = Spinners::start(self, number("threads")?)?;
                *self.lock(&self.spinners) = Some(spinners);
                json!({})
            }
            "/spun" => match self.lock(&self.spinners).take() {
                Some(spinners) => spinners.stop(),
                None => return Err("nothing spins".into()),
            },
            path => return Ok(Reply::error(404, format!("no {path}"))),
        };
        Ok(Reply::new(200, value))
    }

    fn file(&self, what: &str) -> String {
        let path = self.dir.join(format!("{}.{what}", self.ticket));
        path.to_string_lossy().into_owned()
    }

    /// Tells whoever waits for the file that the faults are in force, and where everybody listens.
    fn note(&self, name: &str) -> io::Result<()> {
        let known: Map<String, Value> = std::env::vars()
            .filter(|(name, _)| name.starts_with("BENCH_") || name.starts_with("FAULTBOX_"))
            .map(|(name, value)| (name, value.into()))
            .collect();
        let path = self.dir.join(format!("{name}.note"));
        let draft = self.dir.join(format!("{name}.draft"));
        std::fs::write(&draft, Value::from(known).to_string())?;
        std::fs::rename(draft, path)
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> std::sync::MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The duration of each of so many pwrite(2) calls.
fn times(file: &str, calls: u64) -> io::Result<Value> {
    let open = File::create(file)?;
    let mut histogram = load::histogram().map_err(io::Error::other)?;
    for _ in 0..calls {
        let began = Instant::now();
        open.write_all_at(b"x", 0)?;
        histogram.saturating_record(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    drop(open);
    std::fs::remove_file(file)?;
    Ok(load::percentiles(&histogram))
}

/// Threads that write without pause and count what each call gave.
struct Spinners {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<Count>>>,
}

#[derive(Default)]
struct Count {
    done: u64,
    refused: u64,
    /// Anything but EIO, and any short write.
    strange: u64,
    /// Calls that said they wrote, and did not, or did and said they did not.
    lost: u64,
}

impl Spinners {
    fn start(lab: &Lab, threads: u64) -> Result<Spinners, String> {
        let over = Arc::new(AtomicBool::new(false));
        let threads = (0..threads)
            .map(|i| {
                let (path, over) = (lab.file(&format!("spin-{i}")), over.clone());
                std::thread::Builder::new()
                    .spawn(move || spin(&path, &over))
                    .map_err(|e| format!("thread {i}: {e}"))
            })
            .collect::<Result<_, _>>()?;
        Ok(Spinners { over, threads })
    }

    fn stop(self) -> Value {
        self.over.store(true, Ordering::Relaxed);
        let mut sum = Count::default();
        let mut failed = 0;
        for thread in self.threads {
            match thread.join() {
                Ok(Ok(count)) => {
                    sum.done += count.done;
                    sum.refused += count.refused;
                    sum.strange += count.strange;
                    sum.lost += count.lost;
                }
                _ => failed += 1,
            }
        }
        json!({"done": sum.done, "refused": sum.refused, "strange": sum.strange, "lost": sum.lost, "failed": failed})
    }
}

fn spin(path: &str, over: &AtomicBool) -> io::Result<Count> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let before = file.metadata()?.len();
    let mut count = Count::default();
    while !over.load(Ordering::Relaxed) {
        // EIO is 5 on every Linux.
        match file.write(b"x") {
            Ok(1) => count.done += 1,
            Err(e) if e.raw_os_error() == Some(5) => count.refused += 1,
            _ => count.strange += 1,
        }
    }
    count.lost = (file.metadata()?.len() - before).abs_diff(count.done);
    std::fs::remove_file(path)?;
    Ok(count)
}
