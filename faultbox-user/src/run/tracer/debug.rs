//! What the programs in the kernel say of themselves, for `-vv`.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::poll::{PollFd, PollFlags, PollTimeout};

/// Who hears a line of it.
pub type Listener = Box<dyn Fn(String) + Send + Sync>;

/// The constant of the programs that says how much they tell (`aya_log_ebpf`).
pub const LEVEL: &str = aya_log::LEVEL;
/// Everything up to log level "debug".
pub const TALKATIVE: u8 = 4;
/// Nothing: the kernel's verifier removes what would say more.
pub const SILENT: u8 = 0;

/// How long the reader may be late to notice that it is to end, in milliseconds.
const PATIENCE: u16 = 50;

/// Reads until it is dropped.
pub struct DebugLog {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DebugLog {
    /// Starts to read. Before any program is loaded: they are linked with the log's own descriptor.
    ///
    /// # Errors
    /// The object has no log, or no thread can be had, as a lower-case fragment.
    pub fn follow(ebpf: &mut Ebpf, listener: Listener) -> Result<DebugLog, String> {
        let mut logger = EbpfLogger::init_with_logger(ebpf, Sink(listener))
            .map_err(|e| format!("the programs' log: {e}"))?;
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let thread = std::thread::Builder::new()
            .name("kernel log".to_owned())
            .spawn(move || {
                while !told.load(Ordering::Acquire) {
                    let mut poll = [PollFd::new(logger.as_fd(), PollFlags::POLLIN)];
                    let _ = nix::poll::poll(&mut poll, PollTimeout::from(PATIENCE));
                    logger.flush();
                }
            })
            .map_err(|e| format!("no thread for the programs' log: {e}"))?;
        Ok(DebugLog {
            over,
            thread: Some(thread),
        })
    }
}

impl Drop for DebugLog {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Sink(Listener);

impl log::Log for Sink {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        self.0(record.args().to_string());
    }

    fn flush(&self) {}
}
