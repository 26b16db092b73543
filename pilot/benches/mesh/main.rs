//! How long the control plane takes to know a mesh, to tell of a change, and to issue certificates.
//!
//! In: names of rows, all if none is named. Out: a table: what was done, half and 99 of 100 of the times, the goal. Only
//! an optimized build on a quiet machine tells: `cargo xtask bench`, or `cargo bench -p pilot --bench mesh`.
#![forbid(unsafe_code)]

mod certificates;
mod change;
mod clients;
mod folder;
mod process;
mod row;
mod stages;

use std::process::ExitCode;

use anyhow::Result;
use row::Row;

/// Measures some rows.
type Measure = fn() -> Result<Vec<Row>>;

/// Names, and what measures them.
const GROUPS: &[(&str, Measure)] = &[
    ("pilot-stages", stages::of_ten_thousand),
    ("pilot-ready", process::ready_of_ten_thousand),
    ("pilot-ready-100000", process::ready_of_a_hundred_thousand),
    ("pilot-change", change::reaches_a_thousand),
    ("pilot-certificates", certificates::issued),
];

fn main() -> ExitCode {
    // Cargo adds `--bench`.
    let names: Vec<String> = std::env::args().skip(1).filter(|name| name != "--bench").collect();
    if let Some(unknown) =
        names.iter().find(|name| GROUPS.iter().all(|(group, _)| group != &name.as_str()))
    {
        let known: Vec<&str> = GROUPS.iter().map(|(group, _)| *group).collect();
        eprintln!("there is no row {unknown}; there are {}", known.join(", "));
        return ExitCode::FAILURE;
    }
    let mut rows = Vec::new();
    for (name, measure) in GROUPS {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            match measure() {
                Ok(measured) => rows.extend(measured),
                Err(error) => {
                    eprintln!("{name}: {error:#}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    println!("{}", row::table(&rows));
    ExitCode::SUCCESS
}
