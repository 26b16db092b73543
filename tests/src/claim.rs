//! Claims a cluster number, and clears away what dead runs left.
//!
//! A number is taken while an abstract Unix socket with its name is bound: the kernel gives it back when the process
//! ends, however it ends, so a number that can be bound and still has namespaces or files belongs to a dead run.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::{Context as _, Result, bail};

use crate::plan::Plan;
use crate::teardown;

/// One cluster number, taken until this value is dropped.
#[derive(Debug)]
pub struct Claim {
    plan: Plan,
    _socket: UnixListener,
}

impl Claim {
    /// Takes the lowest free number, after removing what dead runs left behind.
    ///
    /// # Errors
    /// If all numbers are taken, or leftovers cannot be removed.
    pub fn take() -> Result<Claim> {
        for plan in leftovers()? {
            if let Some(_claim) = Claim::bind(plan)?
                && !is_kept(plan)
            {
                teardown::remove(plan)
                    .with_context(|| format!("removing what cluster {} left", plan.number()))?;
            }
        }
        for number in 1..=250 {
            let plan = Plan::new(number);
            if let Some(claim) = Claim::bind(plan)?
                && !is_kept(plan)
            {
                return Ok(claim);
            }
        }
        bail!("all 250 cluster numbers are taken")
    }

    /// The names and addresses that come with the number.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    fn bind(plan: Plan) -> Result<Option<Claim>> {
        let address = SocketAddr::from_abstract_name(format!("aquifer-testbed-{}", plan.number()))?;
        match UnixListener::bind_addr(&address) {
            Ok(socket) => Ok(Some(Claim { plan, _socket: socket })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error).context("claiming a cluster number"),
        }
    }
}

/// Marks a cluster as left up on purpose, so that no later run removes it.
///
/// # Errors
/// If the mark cannot be written.
pub fn keep(plan: Plan) -> Result<()> {
    fs::write(plan.dir().join(KEPT), "").context("marking the cluster as kept")
}

/// The clusters that were left up on purpose.
///
/// # Errors
/// If `/run` cannot be read.
pub fn kept() -> Result<Vec<Plan>> {
    Ok(leftovers()?.into_iter().filter(|plan| is_kept(*plan)).collect())
}

const KEPT: &str = "kept";

fn is_kept(plan: Plan) -> bool {
    plan.dir().join(KEPT).exists()
}

/// Every cluster that has a folder or a namespace.
fn leftovers() -> Result<Vec<Plan>> {
    let mut numbers = BTreeSet::new();
    for folder in ["/run", "/run/netns"] {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("reading {folder}")),
        };
        for entry in entries {
            numbers.extend(number_of(&entry?.file_name().to_string_lossy()));
        }
    }
    Ok(numbers.into_iter().map(Plan::new).collect())
}

/// The cluster number in the name of a folder (`aquifer-7`) or of a namespace (`aq7-fabric`).
fn number_of(name: &str) -> Option<u8> {
    let digits = match name.strip_prefix("aquifer-") {
        Some(digits) => digits,
        None => name.strip_prefix("aq")?.split_once('-')?.0,
    };
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_read_from_names_of_the_testbed_only() {
        for (name, number) in [
            ("aquifer-7", Some(7)),
            ("aq12-fabric", Some(12)),
            ("aq12-shop-web", Some(12)),
            ("aquifer-", None),
            ("aquifer-tools", None),
            ("aqua-1", None),
            ("netns", None),
        ] {
            assert_eq!(number_of(name), number, "{name}");
        }
    }
}
