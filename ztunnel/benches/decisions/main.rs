//! How long the daemon's decisions take, and what it takes to know a large mesh.
//!
//! In: names of rows, all if none is named. Out: a table: what was done, half and 99 of 100 of the times, the goal. Only
//! an optimized build on a quiet machine tells: `cargo xtask bench`, or `cargo bench -p ztunnel --bench decisions`.
#![forbid(unsafe_code)]

mod endpoints;
mod large;
mod policies;
mod row;

use std::process::ExitCode;

use row::Row;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures some rows.
type Measure = fn() -> Vec<Row>;

/// Names, and what measures them.
const GROUPS: &[(&str, Measure)] = &[
    ("decide-load", large::load),
    ("decide-change", endpoints::change),
    ("decide-endpoint", endpoints::pick),
    ("decide-policy-1000", policies::decide),
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
    let wanted =
        |group: &&(&str, Measure)| names.is_empty() || names.iter().any(|name| name == group.0);
    let rows = GROUPS.iter().filter(wanted).flat_map(|(_, measure)| measure());
    println!("{}", row::table(&rows.collect::<Vec<_>>()));
    ExitCode::SUCCESS
}
