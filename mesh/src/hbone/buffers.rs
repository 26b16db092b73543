//! Read buffers that belong to the thread and not to a connection.
//!
//! A connection takes one when the kernel has something for it and gives it back when the bytes have left, so an idle
//! connection holds none.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

use bytes::Bytes;

/// Bytes of one buffer. With 256 KiB a read fills half of a core's L2 cache, so that what is read is sealed while it
/// is still there; 64 KiB costs a quarter more CPU per byte and 1 MiB gains nothing (measured).
pub(super) const BUFFER_BYTES: usize = 256 * 1024;

/// Most buffers that a thread keeps while nobody uses them.
const KEPT: usize = 8;

/// A smaller read is copied: the copy costs less than it would to keep a whole buffer waiting with it.
const COPIED_BYTES: usize = 32 * 1024;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`BUFFER_BYTES`], given back to its thread when dropped.
pub(super) struct Buffer(Box<[u8]>);

impl Buffer {
    pub(super) fn take() -> Self {
        let free = FREE.with_borrow_mut(Vec::pop);
        Self(free.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice()))
    }

    /// The first `len` bytes, without a copy if they are many.
    pub(super) fn freeze(self, len: usize) -> Bytes {
        if len <= COPIED_BYTES {
            return Bytes::copy_from_slice(&self[..len]);
        }
        let mut bytes = Bytes::from_owner(self);
        bytes.truncate(len);
        bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // A thread that is ending has no place for it any more, and `try_with` says so.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(buffer);
            }
        });
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free() -> usize {
        FREE.with_borrow(Vec::len)
    }

    #[test]
    fn a_large_read_keeps_its_buffer_until_its_bytes_have_left() {
        let bytes = Buffer::take().freeze(COPIED_BYTES + 1);
        assert_eq!((bytes.len(), free()), (COPIED_BYTES + 1, 0));
        drop(bytes);
        assert_eq!(free(), 1);
    }

    #[test]
    fn a_small_read_gives_its_buffer_back_at_once() {
        let bytes = Buffer::take().freeze(COPIED_BYTES);
        assert_eq!((bytes.len(), free()), (COPIED_BYTES, 1));
    }

    #[test]
    fn a_thread_keeps_only_a_few() {
        let many: Vec<_> = (0..KEPT * 2).map(|_| Buffer::take()).collect();
        drop(many);
        assert_eq!(free(), KEPT);
    }
}
