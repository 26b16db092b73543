//! Answers as text for people. Pure: each function takes an answer and gives what is printed.

mod daemon;
mod explain;
mod status;

pub(crate) use daemon::{connections, policies, workloads};
pub(crate) use explain::explanation;
pub(crate) use status::{daemons, pilot};

/// `2026-11-20T22:33:16.565496422Z` to the second.
fn seconds(time: &str) -> String {
    match time.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => time.to_owned(),
    }
}
