//! Capture in a real kernel: programs, maps, pins and the daemon's sockets.
//!
//! Each test has its own namespaces, bpffs and maps; see [`bed`].
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod bed;
mod dns;
mod lifecycle;
mod traffic;
