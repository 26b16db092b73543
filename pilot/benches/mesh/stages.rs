//! What the time goes to, within one process.

use std::{collections::HashSet, time::Instant};

use anyhow::Result;
use pilot::{
    compile::{MeshConfig, compile},
    manifests::Folder,
};

use crate::{
    folder::{self, TEN_THOUSAND},
    row::{Row, milliseconds},
};

/// Reads, gathers and compiles the mesh of ten thousand pods.
pub(crate) fn of_ten_thousand() -> Result<Vec<Row>> {
    let dir = tempfile::tempdir()?;
    folder::write(TEN_THOUSAND, dir.path())?;
    let mut folder = Folder::new(dir.path());
    let mut rows = Vec::new();
    let mut measured = |what: &str, begun: Instant| {
        rows.push(Row::once(what, milliseconds(begun.elapsed()), ""));
    };
    let begun = Instant::now();
    folder.refresh(&HashSet::new())?;
    measured("read 10,000 pods", begun);
    let begun = Instant::now();
    let (manifests, problems) = folder.load("istio-system");
    measured("gather and check them", begun);
    for problem in problems.iter().take(3) {
        eprintln!("{problem}");
    }
    let begun = Instant::now();
    let compiled = compile(&manifests, &MeshConfig::default());
    measured("compile them for daemons", begun);
    anyhow::ensure!(compiled.addresses.len() > 10_000, "pods are missing");
    Ok(rows)
}
