//! Keeps a cluster from growing while it is being removed.
//!
//! In: every step that makes something by name passes here. Out: the step, or, once a signal has closed the gate, nothing:
//! the thread waits for the end of the process, which the thread that closed the gate brings about.

use std::cell::RefCell;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static GATE: RwLock<()> = RwLock::new(());

thread_local! {
    /// Held by the one thread that closed the gate, which goes on.
    static CLOSED: RefCell<Option<RwLockWriteGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// A step that is being taken; the gate does not close before it ends.
pub(crate) struct Step(
    #[expect(dead_code, reason = "held, not read")] Option<RwLockReadGuard<'static, ()>>,
);

/// Begins a step, unless the gate is closed: then it never returns.
pub(crate) fn step() -> Step {
    let is_closer = CLOSED.with_borrow(Option::is_some);
    Step((!is_closer).then(|| GATE.read().unwrap_or_else(PoisonError::into_inner)))
}

/// Waits for the steps that are being taken, and allows no more, but for this thread's.
pub(crate) fn close() {
    let guard = GATE.write().unwrap_or_else(PoisonError::into_inner);
    CLOSED.set(Some(guard));
}

/// Makes `folder` and those above it.
///
/// # Errors
/// If it cannot be made.
pub(crate) fn make_folder(folder: &std::path::Path) -> anyhow::Result<()> {
    let _step = step();
    std::fs::create_dir_all(folder)
        .map_err(|error| anyhow::Error::new(error).context(format!("making {}", folder.display())))
}
