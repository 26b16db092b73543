//! The loads that are measured.
//!
//! In: names from the command line. Out: for each the arguments of the load tool, and what its numbers mean.

use anyhow::{Result, bail};

/// One load.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Load {
    /// What it is called.
    pub(crate) name: &'static str,
    /// The client's job.
    pub(crate) job: &'static str,
    /// The port of the server it needs.
    pub(crate) port: u16,
    /// The job's options.
    pub(crate) options: &'static [&'static str],
    /// Where its processes run.
    pub(crate) placement: Placement,
    /// What the proxies' CPU time is divided by.
    pub(crate) per: Per,
}

/// Where the processes of a load run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Placement {
    /// Wherever the scheduler puts them, on all CPUs that the bench itself may use.
    Free,
    /// The client and its node's proxy on CPU 0, the server and its node's proxy on CPU 1.
    Pinned,
}

/// What the proxies' CPU time is divided by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Per {
    /// 10^9 bytes: seconds.
    Gigabyte,
    /// One request or one connection: microseconds.
    Operation,
}

const fn load(
    name: &'static str,
    job: &'static str,
    port: u16,
    options: &'static [&'static str],
    placement: Placement,
    per: Per,
) -> Load {
    Load { name, job, port, options, placement, per }
}

/// Every load, in the order of the table.
pub(crate) const ALL: &[Load] = &[
    load("bulk1-up", "bulk", 7001, &["--direction=up"], Placement::Free, Per::Gigabyte),
    load("bulk1-down", "bulk", 7002, &["--direction=down"], Placement::Free, Per::Gigabyte),
    load(
        "bulk8-up",
        "bulk",
        7001,
        &["--direction=up", "--streams=8"],
        Placement::Free,
        Per::Gigabyte,
    ),
    load(
        "bulk8-down",
        "bulk",
        7002,
        &["--direction=down", "--streams=8"],
        Placement::Free,
        Per::Gigabyte,
    ),
    load("rr1", "rr", 7000, &["--connections=1"], Placement::Pinned, Per::Operation),
    load("rr64", "rr", 7000, &["--connections=64"], Placement::Free, Per::Operation),
    load("crr1", "crr", 7000, &["--parallel=1"], Placement::Free, Per::Operation),
    load("crr8", "crr", 7000, &["--parallel=8"], Placement::Free, Per::Operation),
];

/// What a pod gets alone, and what it gets beside one that takes what it can get: the pair of the row `fair`.
pub(crate) const FAIR: [&Load; 2] = [
    &load("fair-alone", "rr", 7000, &["--connections=1"], Placement::Free, Per::Operation),
    &load("fair-flooded", "rr", 7000, &["--connections=1"], Placement::Free, Per::Operation),
];

/// The rows that are no loads through the lanes.
pub(crate) const OTHERS: &[&str] =
    &["memory", "workloads-10000", "workloads-100000", "dns", "fair"];

/// Whether `names` asks for `row`; no names ask for all.
pub(crate) fn is_wanted(names: &[String], row: &str) -> bool {
    names.is_empty() || names.iter().any(|name| name == row)
}

/// Checks names before anything is built.
///
/// # Errors
/// Names the unknown one, and all that there are.
pub(crate) fn check(names: &[String]) -> Result<()> {
    let known: Vec<&str> = ALL.iter().map(|load| load.name).chain(OTHERS.iter().copied()).collect();
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        Some(unknown) => bail!("there is no row {unknown}; there are {}", known.join(", ")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_row_is_named_beside_those_that_exist() {
        check(&["rr1".to_owned(), "memory".to_owned()]).unwrap();
        let error = check(&["rr2".to_owned()]).unwrap_err().to_string();
        assert!(error.starts_with("there is no row rr2; there are bulk1-up, "), "{error}");
    }
}
