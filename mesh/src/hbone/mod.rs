//! The tunnel between two proxies: HTTP/2 CONNECT inside mutual TLS, and the copying between it and TCP.
//!
//! A [`Pool`] dials tunnels and opens streams on them; a [`Tunnel`] accepts them; [`splice()`] copies between a [`Stream`]
//! and an application's connection. How HTTP/2 and TLS records are done stays behind these. All of it lives on one
//! thread and takes no lock of its own.
//!
//! Who may be reached, and where, is decided elsewhere: `splice` wants the [`Permit`](crate::policy::Permit).

mod authority;
mod buffers;
mod channel;
mod client;
mod conduct;
mod config;
mod connection;
mod frames;
mod inner;
mod keepalive;
mod observer;
mod open_error;
mod outcome;
mod patience;
mod pool;
mod proxy_header;
mod relay;
mod rounds;
mod slots;
mod socket;
mod source;
mod splice;
mod stream;
#[cfg(test)]
mod tests;
mod transport;
mod tunnel;
mod turn;
mod windows;

pub use authority::{Authority, BadAuthority, HostName};
pub use config::HboneConfig;
pub use inner::{Inner, open_inner};
pub use observer::{Handshaken, Observer, Role, SampledSocket};
pub use open_error::OpenError;
pub use outcome::{Abort, AbortSignal, ByteCounters, Ended, Outcome, Side};
pub use patience::Nuisance;
pub use pool::{ConnectRequest, Pool};
pub use proxy_header::{BadProxyHeader, ProxyHeader};
pub use relay::relay;
pub use slots::PoolKey;
pub use source::{Source, take_turns};
pub use splice::splice;
pub use stream::{ErrorCode, Stream, StreamError};
pub use tunnel::{AcceptError, Incoming, Tunnel, TunnelError};
pub use windows::WindowBudget;
