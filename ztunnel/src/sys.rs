//! System calls that no safe library offers: the one place of this crate with `unsafe`.
//!
//! In: file descriptors and paths. Out: file descriptors, numbers, `io::Error`. Each function is one call; when and
//! why to make it is decided by the callers.
#![expect(unsafe_code, reason = "system calls; every block has its SAFETY comment")]

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    time::Duration,
};

/// Where a program is attached; the kernel's `bpf_attach_type`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AttachPoint {
    /// Socket operations of a cgroup.
    SockOps = 3,
    /// connect() of AF_INET sockets of a cgroup.
    Connect4 = 10,
    /// connect() of AF_INET6 sockets of a cgroup.
    Connect6 = 11,
    /// sendmsg() of unconnected AF_INET datagram sockets of a cgroup.
    UdpSendmsg4 = 14,
    /// sendmsg() of unconnected AF_INET6 datagram sockets of a cgroup.
    UdpSendmsg6 = 15,
    /// recvmsg() of AF_INET datagram sockets of a cgroup.
    UdpRecvmsg4 = 19,
    /// recvmsg() of AF_INET6 datagram sockets of a cgroup.
    UdpRecvmsg6 = 20,
    /// getpeername() of AF_INET sockets of a cgroup.
    GetPeerName4 = 29,
    /// getpeername() of AF_INET6 sockets of a cgroup.
    GetPeerName6 = 30,
    /// Socket lookup of a network namespace.
    SkLookup = 36,
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LinkTarget {
    /// A cgroup, by its id (the inode of its directory).
    Cgroup(u64),
    /// A network namespace, by its inode; none if the namespace is gone.
    Netns(Option<u64>),
    /// Anything else.
    Other,
}

/// Moves the calling thread into a network namespace.
///
/// # Errors
/// The kernel's: no privilege, or the descriptor is no network namespace.
pub fn enter_netns(netns: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns takes two integers and touches no memory of ours.
    check(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Reads the cookie of the network namespace that a socket belongs to.
///
/// # Errors
/// The kernel's; `ENOPROTOOPT` before Linux 5.14.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option is eight bytes and `cookie` has room for them, as `length` says.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    })?;
    Ok(cookie)
}

/// What the kernel knows of a TCP connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TcpState {
    /// Smoothed round-trip time, in whole microseconds.
    pub rtt: Duration,
    /// Segments sent again since the connection began.
    pub retransmits: u32,
}

/// Reads the state of a TCP socket's connection.
///
/// # Errors
/// The kernel's; not a TCP socket.
pub fn tcp_state(socket: BorrowedFd<'_>) -> io::Result<TcpState> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, for which `info` has room.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    // SAFETY: it was zeroed, the kernel wrote a part of it or all, and any bytes are a `tcp_info` of integers.
    let info = unsafe { info.assume_init() };
    Ok(TcpState {
        rtt: Duration::from_micros(info.tcpi_rtt.into()),
        retransmits: info.tcpi_total_retrans,
    })
}

/// Attaches a program; it stays attached while the link is open or pinned.
///
/// # Errors
/// The kernel's.
pub fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    at: AttachPoint,
) -> io::Result<OwnedFd> {
    const BPF_LINK_CREATE: libc::c_long = 28;
    bpf_fd(BPF_LINK_CREATE, [words(fd(program), fd(target)), words(at as u32, 0), 0, 0])
}

/// Replaces the program of a link, without a moment in which none is attached.
///
/// # Errors
/// The kernel's; `ENOLINK` or `EINVAL` if what the link was attached to is gone.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_LINK_UPDATE: libc::c_long = 29;
    bpf(BPF_LINK_UPDATE, [words(fd(link), fd(program)), 0, 0, 0]).map(drop)
}

/// Detaches a link's program at once; removing its pin does so only some time later.
///
/// # Errors
/// The kernel's.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_LINK_DETACH: libc::c_long = 34;
    bpf(BPF_LINK_DETACH, [words(fd(link), 0), 0, 0, 0]).map(drop)
}

/// Tells what a link is attached to.
///
/// # Errors
/// The kernel's.
pub fn link_target(link: BorrowedFd<'_>) -> io::Result<LinkTarget> {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    const CGROUP: u32 = 3;
    const NETNS: u32 = 5;
    // struct bpf_link_info: type, id, program id, padding; then by type (cgroup: id as u64, netns: inode as u32).
    let mut info = [0_u32; 16];
    let length = size_of_val(&info) as u32;
    bpf(BPF_OBJ_GET_INFO_BY_FD, [words(fd(link), length), (&raw mut info) as u64, 0, 0])?;
    Ok(match info[0] {
        CGROUP => LinkTarget::Cgroup(words(info[4], info[5])),
        NETNS => LinkTarget::Netns((info[4] != 0).then_some(u64::from(info[4]))),
        _ => LinkTarget::Other,
    })
}

/// Pins a BPF object: it lives until the path is removed.
///
/// # Errors
/// The kernel's; `EPERM` if the path is not on a bpffs.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    const BPF_OBJ_PIN: libc::c_long = 6;
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(BPF_OBJ_PIN, [path.as_ptr() as u64, words(fd(object), 0), 0, 0]).map(drop)
}

/// Opens a pinned BPF object.
///
/// # Errors
/// The kernel's; `ENOENT` if nothing is pinned there.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    const BPF_OBJ_GET: libc::c_long = 7;
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf_fd(BPF_OBJ_GET, [path.as_ptr() as u64, 0, 0, 0])
}

/// Reads a socket's value in a socket-storage map. Takes no lock of ours and may be called by any thread.
///
/// # Errors
/// The kernel's, but not that there is no value: that is `None`.
pub fn socket_storage<T: aya::Pod>(
    map: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
) -> io::Result<Option<T>> {
    const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
    let key = socket.as_raw_fd();
    let mut value = MaybeUninit::<T>::uninit();
    let attributes = [words(fd(map), 0), (&raw const key) as u64, value.as_mut_ptr() as u64, 0];
    match bpf(BPF_MAP_LOOKUP_ELEM, attributes) {
        // SAFETY: the kernel has written a whole value, and any bytes are a `Pod`.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets a socket's value in a socket-storage map. Takes no lock of ours and may be called by any thread.
///
/// # Errors
/// The kernel's.
pub fn set_socket_storage<T: aya::Pod>(
    map: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
    value: T,
) -> io::Result<()> {
    const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
    let key = socket.as_raw_fd();
    let attributes = [words(fd(map), 0), (&raw const key) as u64, (&raw const value) as u64, 0];
    bpf(BPF_MAP_UPDATE_ELEM, attributes).map(drop)
}

/// Calls bpf(2). The commands used here read at most four words of attributes; the kernel takes the rest as zero.
fn bpf(command: libc::c_long, attributes: [u64; 4]) -> io::Result<libc::c_long> {
    let size = size_of_val(&attributes);
    // SAFETY: `attributes` outlives the call and `size` is its size; addresses within are of live values of the
    // size that the map or command has, as each caller above provides.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, (&raw const attributes), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Calls bpf(2) for a command that answers with a new descriptor.
fn bpf_fd(command: libc::c_long, attributes: [u64; 4]) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attributes)?;
    // SAFETY: the kernel has just made the descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}

/// Two neighbouring 32-bit fields as one word, in the machine's byte order.
fn words(first: u32, second: u32) -> u64 {
    let (a, b) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]])
}

fn fd(descriptor: BorrowedFd<'_>) -> u32 {
    u32::try_from(descriptor.as_raw_fd()).expect("an open descriptor is not negative")
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
