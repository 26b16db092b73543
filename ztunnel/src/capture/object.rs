//! The kernel programs: loading, pinning, and taking over what an earlier daemon has pinned.
//!
//! In: the embedded object, the pin directory and the cgroup. Out: the maps, and the program for pods' namespaces.
//! What is in the maps is of no interest here.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    programs::{CgroupSockAddr, Program, ProgramError, ProgramFd, SkLookup, SockOps},
};
use ebpf_common::{LAYOUT, map};
use tracing::debug;

use super::{CaptureConfig, CaptureError};
use crate::sys::{self, AttachPoint, LinkTarget};

/// Built by `cargo xtask ebpf`, found by the build script.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ztunnel.bpf.o"));

/// The programs attached to the cgroup, and where.
const CGROUP_PROGRAMS: [(&str, AttachPoint); 9] = [
    ("connect4", AttachPoint::Connect4),
    ("connect6", AttachPoint::Connect6),
    ("sendmsg4", AttachPoint::UdpSendmsg4),
    ("sendmsg6", AttachPoint::UdpSendmsg6),
    ("recvmsg4", AttachPoint::UdpRecvmsg4),
    ("recvmsg6", AttachPoint::UdpRecvmsg6),
    ("getpeername4", AttachPoint::GetPeerName4),
    ("getpeername6", AttachPoint::GetPeerName6),
    ("observe_sockets", AttachPoint::SockOps),
];

/// The program attached to each pod's namespace.
const NETNS_PROGRAM: &str = "steer";

/// Prefix of the pins of pods' links; the cookie of the pod's namespace follows.
const POD_PREFIX: &str = "pod_";

/// Prefix of the pins of the links to the cgroup; the program's name follows.
const LINK_PREFIX: &str = "link_";

/// Where everything is pinned.
#[derive(Debug)]
pub(super) struct Pins {
    /// Ours, below the directory configured; goes with the last version.
    parent: PathBuf,
    directory: PathBuf,
}

impl Pins {
    pub(super) fn below(pin_dir: &Path) -> Self {
        let parent = pin_dir.join("aquifer");
        Self { directory: parent.join(LAYOUT), parent }
    }

    /// Pins of other versions: those of a daemon that was replaced by this one, or will replace it.
    pub(super) fn others(&self) -> Result<Vec<Self>, CaptureError> {
        let found = paths(&self.parent)?.into_iter().filter(|path| *path != self.directory);
        Ok(found.map(|directory| Self { parent: self.parent.clone(), directory }).collect())
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn pod(&self, cookie: u64) -> PathBuf {
        self.directory.join(format!("{POD_PREFIX}{cookie}"))
    }

    fn program(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{LINK_PREFIX}{name}"))
    }

    /// The pins of the links to the cgroup.
    pub(super) fn programs(&self) -> Result<Vec<PathBuf>, CaptureError> {
        let is_link = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(LINK_PREFIX))
        };
        Ok(paths(&self.directory)?.into_iter().filter(is_link).collect())
    }

    fn create(&self) -> Result<(), CaptureError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(|source| CaptureError::Path { path: self.directory.clone(), source })
    }

    /// Cookies of the pods whose links are pinned.
    pub(super) fn pods(&self) -> Result<Vec<u64>, CaptureError> {
        let pods = paths(&self.directory)?
            .into_iter()
            .filter_map(|path| path.file_name()?.to_str()?.strip_prefix(POD_PREFIX)?.parse().ok());
        Ok(pods.collect())
    }

    /// Removes every pin and the directories.
    pub(super) fn remove(&self) -> Result<(), CaptureError> {
        for path in paths(&self.directory)? {
            unpin(&path)?;
        }
        for directory in [&self.directory, &self.parent] {
            match fs::remove_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(CaptureError::Path { path: directory.clone(), source }),
                Ok(()) => {}
            }
        }
        Ok(())
    }
}

/// What is in a directory, if there is one.
fn paths(directory: &Path) -> Result<Vec<PathBuf>, CaptureError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.and_then(|some| some.map(|entry| Ok(entry?.path())).collect()),
    };
    entries.map_err(|source| CaptureError::Path { path: directory.to_owned(), source })
}

/// Removes a pin, or finds that it is not there.
fn unpin(path: &Path) -> Result<(), CaptureError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| CaptureError::Path { path: path.to_owned(), source }),
    }
}

/// The object with its maps in the kernel.
pub(super) struct Object {
    /// The maps, until they are taken, and the programs.
    pub(super) ebpf: Ebpf,
}

impl Object {
    /// Creates the maps. Those that are pinned are used as they are.
    pub(super) fn load(pins: &Pins) -> Result<Self, CaptureError> {
        pins.create()?;
        let mut loader = EbpfLoader::new();
        // The programs read no kernel structures, so the kernel's own BTF, 20 MB when parsed, is not needed.
        loader.btf(None);
        for name in map::ALL {
            loader.map_pin_path(name, pins.map(name));
        }
        let loaded = loader.load(OBJECT);
        let ebpf = loaded.map_err(|source| CaptureError::Load { source: Box::new(source) })?;
        Ok(Self { ebpf })
    }

    /// Loads the programs and attaches them to the cgroup; links that are pinned get them without a gap. Gives the
    /// program that is to be attached to each pod's namespace.
    pub(super) fn attach(
        &mut self,
        config: &CaptureConfig,
        pins: &Pins,
    ) -> Result<ProgramFd, CaptureError> {
        let cgroup: OwnedFd = fs::File::open(&config.cgroup)
            .map_err(|source| CaptureError::Path { path: config.cgroup.clone(), source })?
            .into();
        for (name, at) in CGROUP_PROGRAMS {
            let program = load_program(&mut self.ebpf, name)?;
            attach(&pins.program(name), program.as_fd(), cgroup.as_fd(), at)?;
        }
        load_program(&mut self.ebpf, NETNS_PROGRAM)
    }
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramFd, CaptureError> {
    let program = ebpf.program_mut(name).ok_or(CaptureError::Object { name })?;
    load_by_type(program)
        .map_err(|source| CaptureError::Program { program: name, source: Box::new(source) })
}

fn load_by_type(program: &mut Program) -> Result<ProgramFd, ProgramError> {
    if let Ok(steer) = <&mut SkLookup>::try_from(&mut *program) {
        steer.load()?;
    } else if let Ok(ops) = <&mut SockOps>::try_from(&mut *program) {
        ops.load()?;
    } else {
        <&mut CgroupSockAddr>::try_from(&mut *program)?.load()?;
    }
    Ok(program.fd()?.try_clone()?)
}

/// Attaches a program and pins the link, or takes over the link pinned there.
pub(super) fn attach(
    pin: &Path,
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    at: AttachPoint,
) -> Result<(), CaptureError> {
    let wrap = |source| CaptureError::Attach { pin: pin.to_owned(), source };
    if let Some(link) = open_link(pin)? {
        let inode = inode(target).map_err(wrap)?;
        if attached_to(link.as_fd(), inode).map_err(wrap)? {
            return sys::link_update(link.as_fd(), program).map_err(wrap);
        }
        debug!(pin = %pin.display(), "the pinned link belongs elsewhere: attaching anew");
        unpin(pin)?;
    }
    let link = sys::link_create(program, target, at).map_err(wrap)?;
    sys::pin(link.as_fd(), pin).map_err(wrap)
}

/// Opens a pinned link, if there is one.
pub(super) fn open_link(pin: &Path) -> Result<Option<OwnedFd>, CaptureError> {
    match sys::open_pin(pin) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CaptureError::Path { path: pin.to_owned(), source }),
    }
}

/// Detaches the program of a pinned link and removes the pin, if there is one.
pub(super) fn detach(pin: &Path) -> Result<(), CaptureError> {
    let Some(link) = open_link(pin)? else { return Ok(()) };
    let detached = sys::link_detach(link.as_fd());
    let detached = detached.map_err(|source| CaptureError::Attach { pin: pin.to_owned(), source });
    unpin(pin).and(detached)
}

/// The namespace that a pod's link is attached to, by inode; none if the pod is gone.
pub(super) fn link_netns(pin: &Path) -> Result<Option<u64>, CaptureError> {
    let Some(link) = open_link(pin)? else { return Ok(None) };
    match sys::link_target(link.as_fd()) {
        Ok(LinkTarget::Netns(inode)) => Ok(inode),
        Ok(LinkTarget::Cgroup(_) | LinkTarget::Other) => Ok(None),
        Err(source) => Err(CaptureError::Path { path: pin.to_owned(), source }),
    }
}

fn attached_to(link: BorrowedFd<'_>, target: u64) -> io::Result<bool> {
    Ok(match sys::link_target(link)? {
        LinkTarget::Cgroup(id) => id == target,
        LinkTarget::Netns(inode) => inode == Some(target),
        LinkTarget::Other => false,
    })
}

fn inode(target: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(fs::File::from(target.try_clone_to_owned()?).metadata()?.ino())
}
