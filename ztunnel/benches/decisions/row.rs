//! One line of the table, and how its times are taken.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

/// What was done, how long it took, and how long it may take.
pub(crate) struct Row {
    /// A sentence.
    pub(crate) what: String,
    /// Half of the times are shorter.
    pub(crate) p50: String,
    /// 99 of 100 are shorter.
    pub(crate) p99: String,
    /// What it may be.
    pub(crate) goal: &'static str,
}

impl Row {
    /// A row of one value that was taken once.
    pub(crate) fn once(what: &str, value: String, goal: &'static str) -> Self {
        Self { what: what.to_owned(), p50: value, p99: String::new(), goal }
    }

    /// A row of times.
    pub(crate) fn times(what: &str, times: Vec<Duration>, goal: &'static str) -> Self {
        let mut times = times;
        times.sort_unstable();
        let at = |percent: usize| text(times[(times.len() - 1) * percent / 100]);
        Self { what: what.to_owned(), p50: at(50), p99: at(99), goal }
    }

    /// A row of something far shorter than reading the clock: each time is the mean of a few hundred calls.
    pub(crate) fn calls(what: &str, goal: &'static str, mut call: impl FnMut(u64)) -> Self {
        const CALLS: u32 = 200;
        const SAMPLES: u64 = 500;
        let sample = |sample: u64| {
            let begun = Instant::now();
            for at in 0..u64::from(CALLS) {
                call(sample * u64::from(CALLS) + at);
            }
            begun.elapsed() / CALLS
        };
        Self::times(what, (0..SAMPLES).map(sample).collect(), goal)
    }
}

fn text(time: Duration) -> String {
    let nanos = time.as_nanos();
    match nanos {
        0..10_000 => format!("{nanos} ns"),
        10_000..10_000_000 => format!("{} µs", nanos / 1000),
        _ => format!("{} ms", nanos / 1_000_000),
    }
}

/// The rows as a table.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = String::from("| decision | p50 | p99 | goal |\n|---|---|---|---|\n");
    for Row { what, p50, p99, goal } in rows {
        let _ = writeln!(table, "| {what} | {p50} | {p99} | {goal} |");
    }
    table
}
