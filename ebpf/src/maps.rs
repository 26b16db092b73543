//! The maps, and the few accesses that `aya_ebpf` has no method for.
//!
//! In: keys and values of `ebpf_common`. Out: values, or nothing. What they mean is decided by the callers.

use core::{
    ffi::c_void,
    ptr::{self, addr_of, read_volatile},
};

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage, SockHash},
    helpers::generated::{
        bpf_get_current_pid_tgid, bpf_map_lookup_elem, bpf_sk_release, bpf_sk_storage_get,
    },
    macros::btf_map,
};
use ebpf_common::{
    Address, Asker, Counter, ExcludedPort, Flow, HOST, Ip, ListenKey, OUTBOUND_PORT,
    OriginalDestination, Pod, TCP,
};

/// Pods on one node; Kubernetes' usual limit is 110.
const MAX_PODS: usize = 4096;

/// netns cookie -> pod.
#[btf_map]
pub static PODS: HashMap<u64, Pod, MAX_PODS> = HashMap::new();

/// Pod address -> what is steered there.
#[btf_map]
pub static ADDRESSES: HashMap<Ip, Address, { 2 * MAX_PODS }> = HashMap::new();

/// The daemon's listening sockets. The kernel takes out those that are closed, so an absent entry means that the
/// daemon is gone. Room for 3 ports of 2 families with 64 threads in 170 pods, and few for DNS.
#[btf_map]
pub static LISTEN: SockHash<ListenKey, 65536> = SockHash::new();

/// Sources whose inbound connections stay uncaptured.
#[btf_map]
pub static EXEMPT: LpmTrie<[u32; 4], u32, 4096> = LpmTrie::new();

/// Original destinations on their way from the client's socket to the accepted one: microseconds each, a second if
/// the listener's queue was full and the SYN is repeated.
#[btf_map]
pub static FLOWS: LruHashMap<Flow, OriginalDestination, 16384> = LruHashMap::new();

/// SYNs that the daemon is sending to applications.
#[btf_map]
pub static OWN_FLOWS: LruHashMap<Flow, u32, 16384> = LruHashMap::new();

/// DNS servers asked, by the socket that asked. An entry that was pushed out costs the query its way to the server
/// that was meant: it goes to the pod's own ones.
#[btf_map]
pub static ASKED: LruHashMap<Asker, OriginalDestination, 16384> = LruHashMap::new();

/// Original destination of a client's socket, and of the socket accepted from it.
#[btf_map]
pub static ORIG_DST: SkStorage<OriginalDestination> = SkStorage::new();

/// Tag of the daemon's own sockets, set through their file descriptors: a pod cannot forge it.
#[btf_map]
pub static OWN_SOCKETS: SkStorage<u32> = SkStorage::new();

/// Ports of a host that stay uncaptured, of either direction.
#[btf_map]
pub static EXCLUDED_PORTS: HashMap<ExcludedPort, u32, 4096> = HashMap::new();

/// Destinations to which a host's connections stay uncaptured.
#[btf_map]
pub static EXCLUDED_NETS: LpmTrie<[u32; 4], u32, 4096> = LpmTrie::new();

/// Decisions by kind.
#[btf_map]
pub static STATS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = STATS.get_ptr_mut(counter as u32) {
        // SAFETY: the map returned a valid slot of this CPU, and no other program runs on it meanwhile.
        unsafe { *value += 1 }
    }
}

/// A socket as the programs' contexts refer to it; not null.
#[derive(Clone, Copy)]
pub struct Socket(*mut bpf_sock);

impl Socket {
    /// Takes the socket of a context, which some contexts do not always have.
    #[inline(always)]
    pub fn new(socket: *mut bpf_sock) -> Option<Self> {
        if socket.is_null() { None } else { Some(Self(socket)) }
    }

    /// The mark of what the socket sends.
    #[inline(always)]
    pub fn mark(self) -> u32 {
        // SAFETY: the socket is not null. Read through the pointer that was checked: the verifier takes one that is
        // loaded again from the context for a different one.
        unsafe { read_volatile(addr_of!((*self.0).mark)) }
    }

    /// The port that the socket is bound to, 0 if it is not yet.
    #[inline(always)]
    pub fn local_port(self) -> u16 {
        // SAFETY: as in `mark`; the field is in host byte order.
        unsafe { read_volatile(addr_of!((*self.0).src_port)) as u16 }
    }

    /// Whether the daemon has tagged the socket as its own.
    #[inline(always)]
    pub fn is_own(self) -> bool {
        self.stored(&OWN_SOCKETS).is_some()
    }

    /// The original destination stored on the socket.
    #[inline(always)]
    pub fn original_destination(self) -> Option<OriginalDestination> {
        // SAFETY: storage of a socket that the program holds stays valid until the program returns.
        self.stored(&ORIG_DST).map(|value| unsafe { *value })
    }

    /// Stores the original destination on the socket, over an earlier one.
    #[inline(always)]
    pub fn set_original_destination(self, mut value: OriginalDestination) -> Option<()> {
        let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        // SAFETY: map and socket are valid, `value` has the map's value type.
        let slot = unsafe {
            bpf_sk_storage_get(
                map_ptr(&ORIG_DST),
                self.0.cast(),
                ptr::from_mut(&mut value).cast(),
                create,
            )
        }
        .cast::<OriginalDestination>();
        if slot.is_null() {
            return None;
        }
        // SAFETY: checked above; the flag alone would keep the value of an earlier connect().
        unsafe { *slot = value };
        Some(())
    }

    #[inline(always)]
    fn stored<T>(self, map: &'static SkStorage<T>) -> Option<*mut T> {
        // SAFETY: map and socket are valid; a null value only asks.
        let slot = unsafe { bpf_sk_storage_get(map_ptr(map), self.0.cast(), ptr::null_mut(), 0) };
        if slot.is_null() { None } else { Some(slot.cast()) }
    }
}

/// Whether the current process is the daemon, which on a host is one among those captured.
///
/// Only while it listens: once it is gone, its number may be any process's. The next daemon listens before it shows
/// itself, and shows itself before it connects to anybody.
#[inline(always)]
pub fn is_daemon(pod: &Pod) -> bool {
    if pod.flags & HOST == 0 || pod.daemon != process() {
        return false;
    }
    let ip = if pod.ip4.is_unspecified() { pod.ip6 } else { pod.ip4 };
    daemon_listens(ListenKey { ip, port: OUTBOUND_PORT, slot: 0, protocol: TCP })
}

/// Notes the current process as the daemon of a host: it has shown a socket that only the daemon can have tagged.
#[inline(always)]
pub fn note_daemon(netns: u64) {
    if let Some(pod) = PODS.get_ptr_mut(netns) {
        // SAFETY: elements are never freed while a program runs; the field is one word.
        unsafe { (*pod).daemon = process() }
    }
}

#[inline(always)]
fn process() -> u32 {
    // SAFETY: the helper takes nothing.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

/// Whether a host's connections to this port stay uncaptured.
#[inline(always)]
pub fn is_excluded_port(port: u16, is_inbound: u16) -> bool {
    EXCLUDED_PORTS.get_ptr(ExcludedPort { port, is_inbound }).is_some()
}

/// Whether the daemon has the socket.
#[inline(always)]
pub fn daemon_listens(key: ListenKey) -> bool {
    // SAFETY: the key has the map's key type.
    let socket = unsafe { bpf_map_lookup_elem(map_ptr(&LISTEN), ptr::from_ref(&key).cast()) };
    if socket.is_null() {
        return false;
    }
    // SAFETY: a socket looked up is a reference that the verifier wants released, once.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}

#[inline(always)]
fn map_ptr<T>(map: &'static T) -> *mut c_void {
    ptr::from_ref(map).cast_mut().cast()
}
