//! Decides whether end-to-end tests can run here.

use std::env;
use std::fs;

use testbed::binaries;
use testbed::teardown::cgroup_root;

/// Whether they can. Says why not; panics instead where CI promises that they can.
pub(crate) fn granted() -> bool {
    skip_without(look())
}

/// Whether those with Envoy can run as well.
pub(crate) fn with_envoy() -> bool {
    granted() && skip_without(binaries::envoy().map(drop).map_err(|error| error.to_string()))
}

fn skip_without(looked: Result<(), String>) -> bool {
    let Err(lack) = looked else { return true };
    assert!(
        env::var_os("CI").is_none_or(|ci| ci != "true"),
        "CI must run the end-to-end tests, but {lack}"
    );
    eprintln!("skipped: {lack}");
    false
}

fn look() -> Result<(), String> {
    // The effective capabilities decide, not the user's name: a container's root may hold none.
    let status = fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    for (capability, name) in [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")] {
        if effective & (1 << capability) == 0 {
            return Err(format!("this process lacks {name} (run as root)"));
        }
    }
    cgroup_root().map(drop).map_err(|error| error.to_string())
}
