//! Logs what the kernel programs decide: for development, with programs built by `cargo xtask ebpf --log`.
//!
//! In: the programs' ring buffer. Out: records of the `log` facade, which the daemon's log shows. Dropping
//! [`Decisions`] ends its thread.

use std::{
    io,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::Log;
use tracing::warn;

/// How long a record may wait in the ring buffer.
const INTERVAL: Duration = Duration::from_millis(50);

/// The thread that reads the ring buffer.
pub(super) struct Decisions {
    /// Never sent on: dropping it is what the thread notices.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Decisions {
    /// Starts reading; to be called before the programs are loaded, because they hold the buffer then. Programs that
    /// were built without logging leave nothing to read.
    pub(super) fn start(ebpf: &mut Ebpf) -> io::Result<Self> {
        let logger = match EbpfLogger::init(ebpf) {
            Ok(logger) => logger,
            Err(error) => {
                warn!(%error, "the kernel programs do not log: build them by `cargo xtask ebpf --log`");
                return Ok(Self { stop: None, thread: None });
            }
        };
        let (stop, stopped) = channel();
        let builder = thread::Builder::new().name("decisions".to_owned());
        let thread = builder.spawn(move || read(logger, &stopped))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Decisions {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported already.
            let _ = thread.join();
        }
    }
}

fn read(mut logger: EbpfLogger<&'static dyn Log>, stopped: &Receiver<()>) {
    while matches!(stopped.recv_timeout(INTERVAL), Err(RecvTimeoutError::Timeout)) {
        logger.flush();
    }
    logger.flush();
}
