//! Checks what capture needs of the machine, before anything is changed.
//!
//! In: the paths configured and what /proc tells. Out: everything that is missing, in words for an operator.

use std::{
    error::Error,
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use ebpf_common::PRESERVED_SOURCE_MARK;
use socket2::{Domain, Socket, Type};

use super::{CaptureConfig, Netns, SocketOptions};

/// The oldest kernel with every feature used: the netns cookie in socket operations.
const KERNEL_FLOOR: (u32, u32) = (5, 15);

/// The privileges needed, by their bit in /proc/self/status.
const CAPABILITIES: [(u32, &str, &str); 2] = [
    (21, "CAP_SYS_ADMIN", "to enter pods' namespaces and load programs"),
    (12, "CAP_NET_ADMIN", "to attach programs and to use clients' addresses"),
];

/// Something that capture needs and that is not there.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Missing {
    /// The kernel is too old.
    #[error("kernel {found} is older than {}.{}", KERNEL_FLOOR.0, KERNEL_FLOOR.1)]
    Kernel {
        /// The running kernel's release.
        found: String,
    },
    /// A privilege.
    #[error("the daemon lacks {name}, {purpose}")]
    Capability {
        /// Its name.
        name: &'static str,
        /// What it is needed for.
        purpose: &'static str,
    },
    /// The pin directory is not on a bpffs.
    #[error("{path} is not on a bpffs: mount one there (mount -t bpf bpf {path})")]
    Bpffs {
        /// The pin directory configured.
        path: PathBuf,
    },
    /// The cgroup is not one of version 2.
    #[error("{path} is not a directory of a cgroup v2 hierarchy{}", found.as_ref().map(|at| format!(" (one is mounted at {})", at.display())).unwrap_or_default())]
    Cgroup {
        /// The cgroup configured.
        path: PathBuf,
        /// Where a hierarchy of version 2 is mounted.
        found: Option<PathBuf>,
    },
    /// The daemon itself must be below the cgroup, for its own sockets to be seen.
    #[error("the daemon's own cgroup {daemon} is not below {cgroup}")]
    OutsideCgroup {
        /// The daemon's cgroup.
        daemon: PathBuf,
        /// The cgroup configured, from the root of the hierarchy.
        cgroup: PathBuf,
    },
    /// Network namespaces cannot be entered, whatever the capabilities say.
    #[error("the daemon cannot enter a network namespace, not even its own: {reason}")]
    EnterNetns {
        /// The kernel's answer.
        reason: String,
    },
    /// Sockets cannot be marked, whatever the capabilities say.
    #[error("the daemon cannot mark its sockets (SO_MARK): {reason}")]
    Mark {
        /// The kernel's answer.
        reason: String,
    },
    /// /proc is not readable.
    #[error("{path} cannot be read: {reason}")]
    Proc {
        /// The file.
        path: &'static str,
        /// The kernel's answer.
        reason: String,
    },
}

/// Lists everything that is missing.
pub fn preflight(config: &CaptureConfig) -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut note = |found: Result<Vec<Missing>, Missing>| match found {
        Ok(some) => missing.extend(some),
        Err(one) => missing.push(one),
    };
    note(read("/proc/sys/kernel/osrelease").map(|text| kernel(text.trim())));
    note(read("/proc/self/status").map(|text| capabilities(&text)));
    note(read("/proc/self/mountinfo").and_then(|mountinfo| {
        let mounts = Mounts::parse(&mountinfo);
        let daemon = read("/proc/self/cgroup")?;
        let mut some = bpffs(&mounts, &config.pin_dir);
        some.extend(cgroup(&mounts, &config.cgroup, &daemon));
        Ok(some)
    }));
    missing
}

/// Does once what every pod will need: enters a network namespace, and marks a socket. Capabilities do not tell of
/// system call filters, nor of a user namespace that is not the host's. Nothing is changed.
pub fn self_check(options: &SocketOptions) -> Vec<Missing> {
    let entered = Netns::open(Path::new("/proc/self/ns/net"))
        .map_err(|error| Missing::EnterNetns { reason: with_source(&error) });
    let marked = Socket::new(Domain::UNIX, Type::STREAM, None)
        .and_then(|socket| {
            // What pods' applications are dialed by; the one that is set may be none.
            socket.set_mark(PRESERVED_SOURCE_MARK)?;
            options.mark(&socket)
        })
        .map_err(|error| Missing::Mark { reason: error.to_string() });
    entered.err().into_iter().chain(marked.err()).collect()
}

fn with_source(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| source.to_string())
}

fn read(path: &'static str) -> Result<String, Missing> {
    fs::read_to_string(path).map_err(|error| Missing::Proc { path, reason: error.to_string() })
}

fn kernel(release: &str) -> Vec<Missing> {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_FLOOR {
        return Vec::new();
    }
    vec![Missing::Kernel { found: release.to_owned() }]
}

fn capabilities(status: &str) -> Vec<Missing> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let absent = CAPABILITIES.iter().filter(|(bit, ..)| effective & (1 << bit) == 0);
    absent.map(|&(_, name, purpose)| Missing::Capability { name, purpose }).collect()
}

fn bpffs(mounts: &Mounts, pin_dir: &Path) -> Vec<Missing> {
    if mounts.of(&resolved(pin_dir)).is_some_and(|mount| mount.kind == "bpf") {
        return Vec::new();
    }
    vec![Missing::Bpffs { path: pin_dir.to_owned() }]
}

fn cgroup(mounts: &Mounts, cgroup: &Path, daemon: &str) -> Vec<Missing> {
    let path = resolved(cgroup);
    let Some(mount) = mounts.of(&path).filter(|mount| mount.kind == "cgroup2" && path.is_dir())
    else {
        let found = mounts.0.iter().find(|mount| mount.kind == "cgroup2");
        let found = found.map(|mount| mount.point.clone());
        return vec![Missing::Cgroup { path: cgroup.to_owned(), found }];
    };
    let below = path.strip_prefix(&mount.point).unwrap_or(&path);
    // Joined by parts: an empty path would leave a slash at the end.
    let cgroup: PathBuf = mount.root.iter().chain(below).collect();
    // "0::/path": the hierarchy of version 2.
    let daemon = daemon.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    if Path::new(daemon).starts_with(&cgroup) {
        return Vec::new();
    }
    vec![Missing::OutsideCgroup { daemon: daemon.into(), cgroup }]
}

/// The path without links, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    path.ancestors().find_map(|part| part.canonicalize().ok()).unwrap_or_else(|| path.to_owned())
}

/// The mounts of /proc/self/mountinfo.
struct Mounts(Vec<Mount>);

struct Mount {
    /// Which part of the file system is mounted.
    root: PathBuf,
    point: PathBuf,
    kind: String,
}

impl Mounts {
    /// Fields 4 and 5 are root and mount point; the file system's kind follows a lone hyphen.
    fn parse(mountinfo: &str) -> Self {
        let line = |line: &str| {
            let (left, right) = line.split_once(" - ")?;
            let mut fields = left.split(' ').skip(3);
            let (root, point) = (unescaped(fields.next()?), unescaped(fields.next()?));
            Some(Mount { root, point, kind: right.split(' ').next()?.to_owned() })
        };
        Self(mountinfo.lines().filter_map(line).collect())
    }

    /// The mount that holds `path`: the longest one, of equals the last.
    fn of(&self, path: &Path) -> Option<&Mount> {
        let holding = self.0.iter().filter(|mount| path.starts_with(&mount.point));
        holding.max_by_key(|mount| mount.point.as_os_str().len())
    }
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescaped(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut path = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let octal = field.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) if byte == b'\\' => {
                path.push(value);
                at += 4;
            }
            Some(_) | None => {
                path.push(byte);
                at += 1;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 0:20 / / rw - ext4 /dev/vda rw
30 22 0:26 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro
31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw
32 22 0:28 /tenant /proc rw - cgroup2 cgroup2 rw
33 22 0:29 / /srv/with\\040space rw - bpf bpf rw
";

    fn mounts() -> Mounts {
        Mounts::parse(MOUNTINFO)
    }

    #[test]
    fn kernels_before_the_floor_are_named() {
        for (release, passes) in [
            ("6.18.4-x", true),
            ("5.15", true),
            ("5.14.21-suse", false),
            ("4.19.0", false),
            ("odd", false),
        ] {
            assert_eq!(kernel(release).is_empty(), passes, "{release}");
        }
        assert_eq!(kernel("5.4.0")[0].to_string(), "kernel 5.4.0 is older than 5.15");
    }

    #[test]
    fn missing_capabilities_are_named_with_their_purpose() {
        assert_eq!(capabilities("CapEff:\t000001ffffffffff\n"), []);
        let missing = capabilities("CapEff:\t0000000000001000\n");
        assert_eq!(
            missing.iter().map(Missing::to_string).collect::<Vec<_>>(),
            ["the daemon lacks CAP_SYS_ADMIN, to enter pods' namespaces and load programs"]
        );
        assert_eq!(capabilities("").len(), 2);
    }

    #[test]
    fn a_pin_directory_off_a_bpffs_is_named_with_the_remedy() {
        assert_eq!(
            bpffs(&mounts(), Path::new("/srv/with space")).len(),
            1,
            "it does not exist here"
        );
        assert_eq!(
            bpffs(&mounts(), Path::new("/nowhere"))[0].to_string(),
            "/nowhere is not on a bpffs: mount one there (mount -t bpf bpf /nowhere)"
        );
    }

    #[test]
    fn the_longest_mount_holds_a_path_and_escapes_are_read() {
        let kind = |path: &str| mounts().of(Path::new(path)).map(|mount| mount.kind.clone());
        assert_eq!(kind("/sys/fs/cgroup/unified/a").as_deref(), Some("cgroup2"));
        assert_eq!(kind("/sys/fs/cgroup/memory").as_deref(), Some("tmpfs"));
        assert_eq!(kind("/srv/with space/aquifer").as_deref(), Some("bpf"));
    }

    #[test]
    fn a_cgroup_of_version_1_is_refused_and_version_2_pointed_out() {
        let missing = cgroup(&mounts(), Path::new("/nowhere"), "0::/\n");
        assert_eq!(
            missing[0].to_string(),
            "/nowhere is not a directory of a cgroup v2 hierarchy (one is mounted at /sys/fs/cgroup/unified)"
        );
    }

    #[test]
    fn a_daemon_outside_of_the_cgroup_is_refused() {
        // "/proc" stands in for a mount point because it exists wherever the tests run.
        let check = |daemon| cgroup(&mounts(), Path::new("/proc"), daemon);
        assert_eq!(check("9:name=systemd:/\n0::/tenant/daemon\n"), []);
        assert_eq!(
            check("0::/other\n")[0].to_string(),
            "the daemon's own cgroup /other is not below /tenant"
        );
    }
}
