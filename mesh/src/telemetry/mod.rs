//! Outcomes in; metrics, access log and the one [`Reason`] of every refusal out.
//!
//! A data thread owns one [`TrafficMetrics`]. For each connection whose ends are known it calls
//! [`TrafficMetrics::open`] and, at the end, [`ConnectionMetrics::finish`]; for one that fails earlier, [`refused`].

mod access_log;
mod baggage;
mod cap;
mod classify;
mod connection;
mod duration;
mod format;
mod log;
mod on_demand;
mod openmetrics;
mod reason;
mod recorder;
mod traffic;

pub use baggage::read_baggage;
pub use connection::{Connection, ConnectionMetrics, Failure, OpenSocket, TrafficMetrics, refused};
pub use duration::{DialedFor, dialed, handshaken, sampled};
pub use format::LogFormat;
pub use log::{LogConfig, LogError, LogHandle, start_log};
pub use on_demand::resolved_on_demand;
pub use reason::{Reason, ResponseFlag};
pub use recorder::{Exposition, Metrics, MetricsError, record_build};
pub use traffic::{Party, Reporter, Security, ServiceName, Traffic};
