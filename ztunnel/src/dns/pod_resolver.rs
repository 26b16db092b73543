//! Where a pod's resolver configuration is found.
//!
//! In: the file that the pod's record names, or the pod's network namespace. Out: what the pod's own resolver was told,
//! kept up to date; what Kubernetes would have told it where nothing is found. Reading is left to a thread that may
//! wait.

use std::{
    cell::RefCell,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use tokio::{sync::Notify, task::spawn_blocking, time::sleep};

use super::ResolvConf;
use crate::proxy::Pod;

/// A file that was found is read again this often: it changes with the node's, if ever.
const REREAD_INTERVAL: Duration = Duration::from_secs(60);
/// After a query that met none, the file is looked for again: the pod's first process may only be starting.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// A resolver configuration is a few hundred bytes; a pod may put anything in its place.
const MAX_BYTES: u64 = 64 << 10;

/// The resolver configuration of one pod.
pub(super) struct PodResolver {
    /// The file named, or the inode of the namespace whose processes have one.
    place: Place,
    current: RefCell<Rc<ResolvConf>>,
    assumed: Rc<ResolvConf>,
    used: Notify,
}

#[derive(Clone, Debug)]
enum Place {
    Named(PathBuf),
    Processes { netns_inode: u64, last: Option<PathBuf> },
}

impl PodResolver {
    pub(super) fn new(pod: &Pod, cluster_domain: &str) -> Self {
        let assumed = Rc::new(ResolvConf::of_kubernetes(&pod.namespace, cluster_domain));
        let place = match &pod.capture.resolv_conf {
            Some(path) => Place::Named(path.clone()),
            None => Place::Processes { netns_inode: pod.netns.inode(), last: None },
        };
        Self { place, current: RefCell::new(assumed.clone()), assumed, used: Notify::new() }
    }

    /// What the pod's resolver was told, as far as is known.
    pub(super) fn conf(&self) -> Rc<ResolvConf> {
        self.used.notify_one();
        self.current.borrow().clone()
    }

    /// Keeps the configuration up to date, forever.
    pub(super) async fn keep_up(&self) {
        let mut place = self.place.clone();
        loop {
            let task = spawn_blocking(move || {
                let found = place.find();
                (place, found)
            });
            // The task ends without a result only with the runtime.
            let Ok((after, found)) = task.await else { return };
            place = after;
            let is_found = found.is_some();
            *self.current.borrow_mut() = found.map_or_else(|| self.assumed.clone(), Rc::new);
            // Nobody asks: nothing is read.
            self.used.notified().await;
            sleep(if is_found { REREAD_INTERVAL } else { RETRY_INTERVAL }).await;
        }
    }
}

impl Place {
    fn find(&mut self) -> Option<ResolvConf> {
        match self {
            Self::Named(path) => match File::open(&*path).and_then(read) {
                Ok(conf) => Some(conf),
                Err(error) => {
                    tracing::warn!(target: "dns", path = %path.display(), %error, "a pod's resolver configuration cannot be read");
                    None
                }
            },
            Self::Processes { netns_inode, last } => {
                let lives = |process: &PathBuf| is_in(process, *netns_inode);
                if let Some(conf) =
                    last.iter().filter(|path| lives(path)).find_map(|path| of_process(path))
                {
                    return Some(conf);
                }
                let (process, conf) = processes()
                    .filter(lives)
                    .find_map(|process| Some((process.clone(), of_process(&process)?)))?;
                *last = Some(process);
                Some(conf)
            }
        }
    }
}

/// Every process that can be seen: with the host's process identifiers these are the node's.
fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    entries
        .filter(move |entry| entry.file_name().to_str().is_some_and(is_process))
        .map(|entry| entry.path())
}

fn is_in(process: &Path, netns_inode: u64) -> bool {
    fs::metadata(process.join("ns/net")).is_ok_and(|netns| netns.ino() == netns_inode)
}

/// The file as the process sees it. It belongs to the pod: links stay inside of its root, and what is no plain file is
/// not waited for.
fn of_process(process: &Path) -> Option<ResolvConf> {
    let root = File::open(process.join("root")).ok()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(&root, "etc/resolv.conf", flags, Mode::empty(), inside).ok()?;
    read(file.into()).ok()
}

fn read(file: File) -> io::Result<ResolvConf> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a plain file"));
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text)?;
    Ok(ResolvConf::parse(&String::from_utf8_lossy(&text)))
}

/// The daemon's own servers, for pods of which none is known. One at a loopback address is of no use in a pod.
pub(super) fn own_nameservers() -> Vec<std::net::SocketAddr> {
    let conf = File::open("/etc/resolv.conf").and_then(read).unwrap_or_default();
    conf.nameservers.into_iter().filter(|server| !server.ip().is_loopback()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_netns() -> u64 {
        fs::metadata("/proc/self/ns/net").unwrap().ino()
    }

    #[test]
    fn the_file_of_a_process_in_the_pods_namespace_is_the_pods() {
        let expected = File::open("/etc/resolv.conf").and_then(read).ok();
        let own = PathBuf::from("/proc/self");
        assert!(is_in(&own, own_netns()) && !is_in(&own, 1));
        assert_eq!(of_process(&own), expected);
        let mut nobody = Place::Processes { netns_inode: 1, last: None };
        assert_eq!(nobody.find(), None);
    }

    #[test]
    fn what_is_no_plain_file_or_endless_is_not_read_to_its_end() {
        assert!(read(File::open("/dev/zero").unwrap()).is_err());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        fs::write(&path, "search a\n".to_owned() + &"#".repeat(1 << 20) + "\nsearch b\n").unwrap();
        let conf = Place::Named(path).find().unwrap();
        assert_eq!(conf.search, ["a".into()]);
    }

    #[test]
    fn a_file_that_is_missing_is_nothing() {
        assert_eq!(Place::Named("/nonexistent/resolv.conf".into()).find(), None);
    }
}
