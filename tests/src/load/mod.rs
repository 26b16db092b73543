//! The load tool: servers, clients and the relay that is the bound of what a proxy can do.
//!
//! In: addresses and how much. Out: a [`Report`]. It measures what an application sees; what the proxies use meanwhile is
//! read from outside, by the bench.

pub mod bulk;
pub mod crowd;
pub mod endings;
pub mod names;
pub mod pattern;
pub mod pump;
pub mod serve;
pub mod threads;

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::process::usage;

/// What a client measured.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Report {
    /// The rate, or for held connections their number.
    pub value: f64,
    /// What `value` counts: `MB/s` (10^6 bytes), `op/s`, `conn/s`, `connections`.
    pub unit: String,
    /// Half of the operations took at most this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<f64>,
    /// 99 of 100 operations took at most this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<f64>,
    /// CPU seconds of the client itself.
    pub cpu_s: f64,
    /// Bytes moved or operations done.
    pub count: u64,
    /// Connections or operations that failed.
    pub errors: u64,
    /// What the first failure was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_error: Option<String>,
}

/// What a client's threads found, added up.
#[derive(Debug, Default)]
pub struct Tally {
    /// Bytes or operations.
    pub count: u64,
    /// How long each operation took, in nanoseconds.
    pub latencies_ns: Vec<u32>,
    /// Failures.
    pub errors: u64,
    /// The first failure.
    pub first_error: Option<String>,
}

impl Tally {
    /// Adds what another thread or connection found.
    pub fn add(&mut self, other: Tally) {
        self.count += other.count;
        self.latencies_ns.extend(other.latencies_ns);
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }

    /// Counts a failure.
    pub fn fail(&mut self, error: &dyn std::fmt::Display) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
    }

    /// Counts an operation that took `took`.
    pub fn record(&mut self, took: Duration) {
        self.count += 1;
        self.latencies_ns.push(u32::try_from(took.as_nanos()).unwrap_or(u32::MAX));
    }

    /// The report of a run that lasted `lasted`: `count` per second, divided by `scale`.
    ///
    /// # Errors
    /// If the own use of CPU cannot be read.
    pub fn report(mut self, lasted: Duration, unit: &str, scale: f64) -> Result<Report> {
        self.latencies_ns.sort_unstable();
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
        let rate = self.count as f64 / lasted.as_secs_f64() / scale;
        Ok(Report {
            value: rate,
            unit: unit.to_owned(),
            p50_us: percentile_us(&self.latencies_ns, 50),
            p99_us: percentile_us(&self.latencies_ns, 99),
            cpu_s: usage(std::process::id())?.cpu.as_secs_f64(),
            count: self.count,
            errors: self.errors,
            first_error: self.first_error,
        })
    }
}

/// The smallest of `sorted` that `percent` of 100 do not exceed, in microseconds.
fn percentile_us(sorted: &[u32], percent: usize) -> Option<f64> {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).map(|ns| f64::from(*ns) / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let sorted: Vec<u32> = (1..=200).map(|n| n * 1000).collect();
        assert_eq!(percentile_us(&sorted, 50), Some(100.0));
        assert_eq!(percentile_us(&sorted, 99), Some(198.0));
        assert_eq!(percentile_us(&[7000], 99), Some(7.0));
        assert_eq!(percentile_us(&[], 50), None);
    }

    #[test]
    fn a_tally_keeps_the_first_failure_and_counts_all() {
        let mut tally = Tally::default();
        tally.fail(&"first");
        let mut other = Tally { count: 3, ..Tally::default() };
        other.fail(&"second");
        tally.add(other);
        assert_eq!(
            (tally.count, tally.errors, tally.first_error.as_deref()),
            (3, 2, Some("first"))
        );
    }
}
