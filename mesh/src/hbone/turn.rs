//! Lets tunnels send what was read before streams read more.
//!
//! What one stream has read is sealed while it is still in the core's cache. Without this, eight busy streams would read
//! a buffer each before the tunnel's task runs, and every byte would be fetched from memory again.

use std::cell::Cell;

use super::buffers::BUFFER_BYTES;

thread_local! {
    /// Bytes that the thread's streams have read since one of its tunnels last ran.
    static UNSENT_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// A stream has read `count` bytes and given them to its tunnel, whose task is thereby ready to run.
pub(super) fn read(count: usize) {
    UNSENT_BYTES.set(UNSENT_BYTES.get() + count);
}

/// Whether a stream should let a tunnel run before it reads. Once is enough: tasks run in the order they became ready.
pub(super) fn is_over() -> bool {
    UNSENT_BYTES.get() >= BUFFER_BYTES
}

/// A tunnel has run.
pub(super) fn sent() {
    UNSENT_BYTES.set(0);
}
