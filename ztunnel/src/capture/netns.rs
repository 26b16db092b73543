//! A pod's network namespace, and running code inside of it.
//!
//! In: a path or descriptor of a namespace. Out: its cookie, and whatever is made inside. Sockets stay in the
//! namespace where they are made, so only their making happens inside; all of it is synchronous.

use std::{
    cell::{Cell, OnceCell},
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    process::abort,
};

use tracing::error;

use crate::sys;

thread_local! {
    /// The namespace that this thread started in.
    static HOME: OnceCell<OwnedFd> = const { OnceCell::new() };
    /// Whether it is elsewhere. The way back leads home, so that going further would lose the place between.
    static AWAY: Cell<bool> = const { Cell::new(false) };
}

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path cannot be opened.
    #[error("opening network namespace {path}")]
    Open {
        /// The path given.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The descriptor is not a network namespace, or the daemon may not enter it.
    #[error("entering the network namespace")]
    Enter {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel does not tell the cookie (before Linux 5.14).
    #[error("reading the cookie of the network namespace")]
    Cookie {
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A network namespace. Holding one keeps the namespace alive.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    cookie: u64,
    inode: u64,
    place: Place,
}

/// Where a namespace is, seen from the daemon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// It is the daemon's own: nothing has to be entered.
    Home,
    Elsewhere,
}

impl Netns {
    /// The daemon's own namespace. It is never entered, so that no privilege is needed for it.
    ///
    /// # Errors
    /// It cannot be opened, or the kernel does not tell its cookie.
    pub fn home() -> Result<Self, NetnsError> {
        let path = Path::new("/proc/self/ns/net");
        let file = File::open(path)
            .map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
        let socket = UnixDatagram::unbound().map_err(|source| NetnsError::Enter { source })?;
        Self::of(file.into(), &socket, Place::Home)
    }

    /// Opens the namespace at `path`, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// The path cannot be opened, or is not a network namespace that the daemon may enter.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let file = File::open(path)
            .map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
        Self::from_fd(file.into())
    }

    /// Takes an open namespace, as a node agent hands it over.
    ///
    /// # Errors
    /// The descriptor is not a network namespace that the daemon may enter.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetnsError> {
        let socket = inside(fd.as_fd(), UnixDatagram::unbound)
            .and_then(|made| made)
            .map_err(|source| NetnsError::Enter { source })?;
        Self::of(fd, &socket, Place::Elsewhere)
    }

    fn of(fd: OwnedFd, inside: &UnixDatagram, place: Place) -> Result<Self, NetnsError> {
        let cookie =
            sys::netns_cookie(inside.as_fd()).map_err(|source| NetnsError::Cookie { source })?;
        let file = File::from(fd);
        let inode = file.metadata().map_err(|source| NetnsError::Enter { source })?.ino();
        Ok(Self { fd: file.into(), cookie, inode, place })
    }

    /// The kernel's number for the namespace, never used again until the machine restarts.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The inode of the namespace, unique while it lives.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `work` on this thread inside the namespace and comes back.
    ///
    /// # Errors
    /// The namespace cannot be entered, or this thread is inside of one already.
    ///
    /// # Aborts
    /// The process, if the way back fails: the thread would go on in a pod's namespace.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        match self.place {
            Place::Home => Ok(work()),
            Place::Elsewhere => inside(self.fd.as_fd(), work),
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn inside<T>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T) -> io::Result<T> {
    if AWAY.get() {
        return Err(io::Error::other("this thread is inside of a network namespace already"));
    }
    HOME.with(|home| {
        if home.get().is_none() {
            // The first call of a thread, which is therefore at home.
            let _ = home.set(File::open("/proc/thread-self/ns/net")?.into());
        }
        let home = home.get().expect("set above");
        sys::enter_netns(netns)?;
        AWAY.set(true);
        let _way_back = WayBack { home: home.as_fd() };
        Ok(work())
    })
}

/// Returns the thread to its own namespace, also when `work` panics.
struct WayBack<'home> {
    home: BorrowedFd<'home>,
}

impl Drop for WayBack<'_> {
    fn drop(&mut self) {
        if let Err(error) = sys::enter_netns(self.home) {
            error!(%error, "cannot leave a pod's network namespace: aborting");
            abort();
        }
        AWAY.set(false);
    }
}
