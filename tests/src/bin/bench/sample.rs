//! What one run of a load gave, and what several give together.
//!
//! In: reports of the load tool and the use of CPU meanwhile. Out: a [`Row`]: medians of the runs that nobody disturbed.

use serde::Serialize;
use testbed::load::Report;

use crate::load_rows::{Load, Per};
use crate::machine::{Between, FOREIGN_LIMIT};

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    report: Report,
    cpu: Option<f64>,
    foreign_cores: f64,
}

/// One cell of the table: a load on a path.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Row {
    /// `direct`, `relay`, `mesh` …
    pub(crate) path: String,
    /// `bulk1-up` …
    pub(crate) load: String,
    /// `reno`, or the host's own.
    pub(crate) congestion_control: String,
    /// The median rate, or nothing if every run was disturbed.
    pub(crate) value: Option<f64>,
    /// `MB/s`, `op/s`, `conn/s`, `MB`, `bytes`.
    pub(crate) unit: String,
    /// The median of the runs' medians.
    pub(crate) p50_us: Option<f64>,
    /// The median of the runs' 99th percentiles.
    pub(crate) p99_us: Option<f64>,
    /// CPU of all proxies together, in `cpu_unit`.
    pub(crate) cpu: Option<f64>,
    /// `s/GB` or `us/op`.
    pub(crate) cpu_unit: Option<String>,
    /// How many runs the medians are of.
    pub(crate) runs: usize,
    /// Runs that are not counted, because others used the machine.
    pub(crate) disturbed: usize,
    /// The highest foreign load of those, in cores.
    pub(crate) foreign_cores: Option<f64>,
    /// Operations that failed in all runs.
    pub(crate) errors: u64,
    /// What the first failure was, or why there is no value.
    pub(crate) note: Option<String>,
}

impl Sample {
    /// A run of `load` that gave `report`, while `between` was used.
    pub(crate) fn new(load: &Load, report: Report, between: Between) -> Sample {
        let seconds = between.proxies.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
        let count = report.count as f64;
        let per = match load.per {
            Per::Gigabyte => seconds / (count / 1e9),
            Per::Operation => seconds * 1e6 / count,
        };
        let cpu = (report.count > 0 && seconds > 0.0).then_some(per);
        Sample { report, cpu, foreign_cores: between.foreign_cores }
    }

    /// Whether others used so much of the machine that the run tells nothing.
    pub(crate) fn is_disturbed(&self) -> bool {
        self.foreign_cores > FOREIGN_LIMIT
    }
}

impl Row {
    /// The row of a load on a path, from all its runs.
    pub(crate) fn of(path: &str, load: &Load, congestion_control: &str, samples: &[Sample]) -> Row {
        let quiet: Vec<&Sample> = samples.iter().filter(|sample| !sample.is_disturbed()).collect();
        let disturbed: Vec<&Sample> =
            samples.iter().filter(|sample| sample.is_disturbed()).collect();
        let values = |field: fn(&Sample) -> Option<f64>| {
            median(quiet.iter().filter_map(|sample| field(sample)))
        };
        Row {
            path: path.to_owned(),
            load: load.name.to_owned(),
            congestion_control: congestion_control.to_owned(),
            value: values(|sample| Some(sample.report.value)),
            unit: samples.first().map(|sample| sample.report.unit.clone()).unwrap_or_default(),
            p50_us: values(|sample| sample.report.p50_us),
            p99_us: values(|sample| sample.report.p99_us),
            cpu: values(|sample| sample.cpu),
            cpu_unit: Some(match load.per {
                Per::Gigabyte => "s/GB".to_owned(),
                Per::Operation => "us/op".to_owned(),
            }),
            runs: quiet.len(),
            disturbed: disturbed.len(),
            foreign_cores: disturbed.iter().map(|sample| sample.foreign_cores).reduce(f64::max),
            errors: samples.iter().map(|sample| sample.report.errors).sum(),
            note: samples.iter().find_map(|sample| sample.report.first_error.clone()),
        }
    }
}

/// The middle value; of an even number of values the lower of the two in the middle, so that it is one that occurred.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load_rows::ALL;

    fn sample(value: f64, foreign_cores: f64) -> Sample {
        let report =
            Report { value, unit: "MB/s".to_owned(), count: 2_000_000_000, ..Report::default() };
        Sample::new(&ALL[0], report, Between { proxies: Duration::from_secs(3), foreign_cores })
    }

    #[test]
    fn a_row_is_the_median_of_its_quiet_runs() {
        let samples = [sample(10.0, 0.0), sample(90.0, 0.9), sample(30.0, 0.1), sample(20.0, 0.0)];
        let row = Row::of("mesh", &ALL[0], "reno", &samples);
        assert_eq!(
            (row.value, row.runs, row.disturbed, row.foreign_cores),
            (Some(20.0), 3, 1, Some(0.9))
        );
        assert_eq!(row.cpu, Some(1.5));
    }

    #[test]
    fn a_row_whose_runs_were_all_disturbed_has_no_value() {
        let row = Row::of("mesh", &ALL[0], "reno", &[sample(10.0, 1.0)]);
        assert_eq!((row.value, row.runs, row.disturbed), (None, 0, 1));
    }
}
