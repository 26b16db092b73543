//! One line of the table.

use std::{fmt::Write as _, time::Duration};

/// What was done, how long it took, and how long it may take.
pub(crate) struct Row {
    /// A sentence.
    pub(crate) what: String,
    /// What was measured; of times, half are shorter.
    pub(crate) value: String,
    /// 99 of 100 are shorter.
    pub(crate) p99: String,
    /// What it may be.
    pub(crate) goal: &'static str,
}

impl Row {
    /// A row of one value that was taken once.
    pub(crate) fn once(what: impl Into<String>, value: String, goal: &'static str) -> Self {
        Self { what: what.into(), value, p99: String::new(), goal }
    }

    /// A row of times.
    pub(crate) fn times(
        what: impl Into<String>,
        mut times: Vec<Duration>,
        goal: &'static str,
    ) -> Self {
        times.sort_unstable();
        let at = |percent: usize| milliseconds(times[(times.len() - 1) * percent / 100]);
        Self { what: what.into(), value: at(50), p99: at(99), goal }
    }
}

/// A time, for the table.
pub(crate) fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// The rows as a table.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut table =
        String::from("| control plane | value, p50 | p99 | goal |\n|---|---|---|---|\n");
    for Row { what, value, p99, goal } in rows {
        let _ = writeln!(table, "| {what} | {value} | {p99} | {goal} |");
    }
    table
}
