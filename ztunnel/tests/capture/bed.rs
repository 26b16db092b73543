//! What the tests of capture run in: namespaces, a bpffs and a cgroup of their own, removed when a test ends.
//!
//! In: names. Out: pods to connect from and to. Needs root; without it a test is skipped, but fails in CI.

use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use socket2::SockRef;
use ztunnel::capture::{
    Capture, CaptureConfig, DaemonAway, DnsListeners, Netns, PodCapture, PodListeners, Scope,
    SocketOptions, Sources,
};

/// Longer than anything takes here; only a failing test waits as long.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

/// Two pods and an outside host on one bridge: 10.77.0.2, .3 and .9, fd77::2, ::3 and ::9.
pub(crate) struct Bed {
    pub(crate) config: CaptureConfig,
    pub(crate) pod: Host,
    pub(crate) other: Host,
    pub(crate) outside: Host,
    fabric: String,
    pins: tempfile::TempDir,
    _cgroup: TestCgroup,
}

/// A namespace with an address of each family.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) netns: Arc<Netns>,
    pub(crate) ip4: IpAddr,
    pub(crate) ip6: IpAddr,
}

impl Bed {
    /// Makes a bed, or says why the test is skipped.
    pub(crate) fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !is_root() {
            assert!(std::env::var_os("CI").is_none(), "the tests of capture need root");
            eprintln!("skipped: needs root");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |host: &str| format!("aqc-{}-{number}-{host}", std::process::id());
        let fabric = name("fabric");
        ip(&format!("netns add {fabric}"));
        ip(&format!("-n {fabric} link add bridge0 type bridge"));
        ip(&format!("-n {fabric} link set bridge0 up"));
        let host = |host: &str, last: u8| Host::new(&fabric, name(host), last);
        let (pod, other, outside) = (host("pod", 2), host("other", 3), host("outside", 9));
        let pins = tempfile::tempdir().unwrap();
        run("mount", &["-t", "bpf", "bpf", pins.path().to_str().unwrap()]);
        let cgroup = TestCgroup::enter();
        let config = CaptureConfig {
            pin_dir: pins.path().to_owned(),
            cgroup: TestCgroup::path(),
            ..CaptureConfig::default()
        };
        Some(Self { config, pod, other, outside, fabric, pins, _cgroup: cgroup })
    }

    pub(crate) fn open(&self) -> Capture {
        Capture::open(&self.config).unwrap()
    }

    /// Where this version pins.
    pub(crate) fn pin_directory(&self) -> PathBuf {
        self.config.pin_dir.join("aquifer/v3")
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = output("umount", &[self.pins.path().to_str().unwrap()]);
        for name in [&self.pod.name, &self.other.name, &self.outside.name, &self.fabric] {
            let _ = output("ip", &["netns", "del", name]);
        }
    }
}

impl Host {
    fn new(fabric: &str, name: String, last: u8) -> Self {
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link add eth0 type veth peer name host{last} netns {fabric}"));
        ip(&format!("-n {fabric} link set host{last} master bridge0 up"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} addr add 10.77.0.{last}/24 dev eth0"));
        ip(&format!("-n {name} addr add fd77::{last}/64 dev eth0 nodad"));
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {name} route add default via 10.77.0.1"));
        let netns = Netns::open(Path::new(&format!("/run/netns/{name}"))).unwrap();
        let (ip4, ip6) =
            ([10, 77, 0, last].into(), [0xfd77, 0, 0, 0, 0, 0, 0, u16::from(last)].into());
        Self { name, netns: Arc::new(netns), ip4, ip6 }
    }

    pub(crate) fn capture(&self, daemon_away: DaemonAway) -> PodCapture {
        PodCapture {
            netns: Arc::clone(&self.netns),
            ips: vec![self.ip4, self.ip6],
            daemon_away,
            sources: Sources::Preserved,
            scope: Scope::Pod,
        }
    }

    /// Listeners whose accept() waits, at most [`LIMIT`].
    pub(crate) fn daemon(&self, per_port: usize) -> PodListeners {
        let per_port = NonZeroUsize::new(per_port).unwrap();
        let listeners =
            PodListeners::open(&self.netns, per_port, &SocketOptions::default()).unwrap();
        let all = listeners.outbound.iter().chain(&listeners.plaintext).chain(&listeners.hbone);
        all.for_each(waiting);
        listeners
    }

    /// As [`Host::daemon`], with sockets for DNS that wait likewise.
    pub(crate) fn daemon_with_dns(&self) -> PodListeners {
        let mut listeners = self.daemon(1);
        let dns = DnsListeners::open(&self.netns, &[self.ip4, self.ip6], 15053).unwrap();
        waiting(&dns.connections);
        dns.datagrams.iter().for_each(waiting_datagrams);
        listeners.dns = Some(dns);
        listeners
    }

    /// A datagram socket of an application, its answers waited for at most [`LIMIT`].
    pub(crate) fn datagrams(&self, at: &str) -> UdpSocket {
        let socket = self.netns.enter(|| UdpSocket::bind(at)).unwrap().unwrap();
        waiting_datagrams(&socket);
        socket
    }

    pub(crate) fn connect(&self, to: &str) -> io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        let stream = self.netns.enter(|| TcpStream::connect_timeout(&to, LIMIT)).unwrap()?;
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Ok(stream)
    }

    /// An application listening on `port` of all addresses.
    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        let listener = self.netns.enter(|| TcpListener::bind(("::", port))).unwrap().unwrap();
        waiting(&listener);
        listener
    }

    /// What `ip` prints inside the namespace.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.name))
    }

    pub(crate) fn sysctl(&self, path: &str) -> String {
        let path = format!("/proc/sys/net/{path}");
        self.netns.enter(|| fs::read_to_string(path)).unwrap().unwrap().trim().to_owned()
    }
}

/// Whether the two ends are one connection.
pub(crate) fn connected(mut a: &TcpStream, mut b: &TcpStream) {
    let mut bytes = [0; 5];
    a.write_all(b"hello").unwrap();
    b.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    b.write_all(b"world").unwrap();
    a.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"world");
}

/// Accepts a connection; panics if none comes within [`LIMIT`].
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().expect("a connection should have come here");
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Whether no connection waits at the listener.
pub(crate) fn idle(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    let result = listener.accept();
    listener.set_nonblocking(false).unwrap();
    result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Addresses as people write them: IPv4 never in mapped form.
pub(crate) fn canonical(address: io::Result<SocketAddr>) -> SocketAddr {
    let address = address.unwrap();
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn waiting(listener: &TcpListener) {
    listener.set_nonblocking(false).unwrap();
    // The receive timeout bounds accept() too.
    SockRef::from(listener).set_read_timeout(Some(LIMIT)).unwrap();
}

fn waiting_datagrams(socket: &UdpSocket) {
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Uid:\t0\t0"))
}

fn ip(arguments: &str) -> String {
    run("ip", &arguments.split(' ').collect::<Vec<_>>())
}

/// Held shared while another program runs: until it has begun, it has copies of this process's descriptors, those of
/// tests beside it included.
static CHILDREN: RwLock<()> = RwLock::new(());

/// Drops what holds sockets or programs, when no child has copies of them: they are gone when this returns.
pub(crate) fn close<T>(owned: T) {
    let _no_children = CHILDREN.write().unwrap();
    drop(owned);
}

fn output(program: &str, arguments: &[&str]) -> io::Result<Output> {
    let _child = CHILDREN.read().unwrap();
    Command::new(program).args(arguments).output()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

/// The cgroup of this process while any test runs: nothing else on the machine meets the programs under test.
struct TestCgroup;

static TESTS: Mutex<u32> = Mutex::new(0);

impl TestCgroup {
    fn enter() -> Self {
        let mut tests = TESTS.lock().unwrap();
        if *tests == 0 {
            fs::create_dir_all(Self::path()).unwrap();
            Self::move_to(&Self::path());
        }
        *tests += 1;
        Self
    }

    fn path() -> PathBuf {
        Self::root().join(format!("aquifer-capture-{}", std::process::id()))
    }

    fn root() -> PathBuf {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = fields.find(|fields| fields[2] == "cgroup2").expect("cgroup v2 is mounted");
        mount[1].into()
    }

    fn move_to(cgroup: &Path) {
        fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let mut tests = TESTS.lock().unwrap();
        *tests -= 1;
        if *tests == 0 {
            Self::move_to(&Self::root());
            let _ = fs::remove_dir(Self::path());
        }
    }
}
