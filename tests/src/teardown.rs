//! Removes a cluster: its processes, namespaces, cgroups, mounts and files.
//!
//! In: a [`Plan`]; everything is found by name, so this works for a live cluster, after a signal, and for what a killed run
//! left. Only processes in the cluster's own cgroup are ended. Doing it twice is no error.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use tokio::signal::unix::{SignalKind, signal};

use crate::command::{ip_batch, run};
use crate::gate;
use crate::plan::Plan;
use crate::wait::{PATIENCE, wait_until};

/// Clusters of this process that a signal must remove.
static LIVE: Mutex<BTreeSet<u8>> = Mutex::new(BTreeSet::new());
static WATCH: Once = Once::new();

/// Has the cluster removed if this process gets SIGINT or SIGTERM.
///
/// # Errors
/// If the signals cannot be caught.
pub fn on_signal(plan: Plan) -> Result<()> {
    let mut watching = Ok(());
    WATCH.call_once(|| watching = watch_signals());
    watching?;
    live().insert(plan.number());
    Ok(())
}

/// Leaves the cluster alone when a signal comes.
pub fn forget(plan: Plan) {
    live().remove(&plan.number());
}

/// Removes everything that carries the cluster's number.
///
/// # Errors
/// At the first part that stays.
pub fn remove(plan: Plan) -> Result<()> {
    // Not beside the thread that a signal has woken: this one would return, and end the process under it.
    drop(gate::step());
    let removed = remove_parts(plan);
    // Last: a signal that comes meanwhile finds the cluster on the list, and does what is left.
    forget(plan);
    removed
}

fn remove_parts(plan: Plan) -> Result<()> {
    let cgroup = cgroup_root()?.join(plan.cgroup_name());
    if cgroup.exists() {
        kill_cgroup(&cgroup)?;
        remove_cgroup(&cgroup)?;
    }
    let deletions: Vec<String> =
        netns_of(plan)?.iter().map(|name| format!("netns del {name}")).collect();
    if !deletions.is_empty() {
        ip_batch(None, &deletions)?;
    }
    let bpffs = plan.dir().join("bpffs");
    if is_mounted(&bpffs)? {
        run("umount", [&bpffs])?;
    }
    match fs::remove_dir_all(plan.dir()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", plan.dir().display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Where the cgroup v2 hierarchy is mounted: `/sys/fs/cgroup`, or beside v1 hierarchies `/sys/fs/cgroup/unified`.
///
/// # Errors
/// If there is none.
pub fn cgroup_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    cgroup_mount(&mounts).context("no cgroup2 file system is mounted")
}

/// What of the cluster is still there, in words: nothing after [`remove`].
///
/// # Errors
/// If that cannot be found out.
pub fn remains(plan: Plan) -> Result<Vec<String>> {
    let mut found = netns_of(plan)?;
    let cgroup = cgroup_root()?.join(plan.cgroup_name());
    found.extend(
        [cgroup, plan.dir()]
            .into_iter()
            .filter(|path| path.exists())
            .map(|path| path.display().to_string()),
    );
    Ok(found)
}

fn watch_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
        });
        gate::close();
        // `remove` takes each cluster off the list, whether or not it succeeds.
        while let Some(number) = first_live() {
            if let Err(error) = remove(Plan::new(number)) {
                eprintln!("cluster {number} was not removed: {error:#}");
            }
        }
        process::exit(130);
    });
    Ok(())
}

fn first_live() -> Option<u8> {
    live().first().copied()
}

fn live() -> MutexGuard<'static, BTreeSet<u8>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn netns_of(plan: Plan) -> Result<Vec<String>> {
    let names = match fs::read_dir("/run/netns") {
        Ok(entries) => {
            entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let mut names: Vec<String> = names.context("reading /run/netns")?;
    names.retain(|name| name.starts_with(&plan.netns_prefix()));
    Ok(names)
}

fn cgroup_mount(mounts: &str) -> Option<PathBuf> {
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.find_map(|line| match line.as_slice() {
        [_, path, "cgroup2", ..] => Some(PathBuf::from(path)),
        _ => None,
    })
}

fn is_mounted(path: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(1).is_some_and(|mounted| Path::new(mounted) == path)))
}

/// Ends every process in `cgroup` and below, and waits until they have ended.
pub(crate) fn kill_cgroup(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.kill"), "1")
        .with_context(|| format!("ending what runs in {}", cgroup.display()))?;
    let events = cgroup.join("cgroup.events");
    wait_until("the cluster's processes to end", PATIENCE, || {
        fs::read_to_string(&events).is_ok_and(|events| events.contains("populated 0"))
    })
}

fn remove_cgroup(cgroup: &Path) -> Result<()> {
    for entry in fs::read_dir(cgroup).with_context(|| format!("reading {}", cgroup.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    let removed = wait_until("the cgroup to be removable", PATIENCE, || {
        if fs::remove_dir(cgroup).is_ok() {
            return true;
        }
        // A process that was on its way in when the others were ended has come by now.
        let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        false
    });
    ensure!(removed.is_ok(), "{} stays", cgroup.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_v2_mount_is_found_alone_and_beside_v1() {
        let alone = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        let beside = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup_mount(alone), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(cgroup_mount(beside), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(cgroup_mount("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"), None);
    }
}
