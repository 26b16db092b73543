//! Notices that files change.
//!
//! In: paths. Out: a call when what is found there has become something else and stays so. It looks twice a second, which
//! costs one system call per file: unlike a watch of the kernel's, a look follows links that are exchanged, as those of
//! mounted secrets are, and sees through mounts and files that come and go. A file that is being written is left alone
//! until two looks find the same. What is in a file does not matter here.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

const INTERVAL: Duration = Duration::from_millis(500);

/// Tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// What the last looks found. `S` is a stamp.
struct Watch<S> {
    /// What was told last.
    told: S,
    /// What the last look found.
    seen: S,
}

impl<S: Copy + PartialEq> Watch<S> {
    fn new(found: S) -> Self {
        Self { told: found, seen: found }
    }

    /// Whether there is something else than what was told last, and it stays.
    fn handle_look(&mut self, found: S) -> bool {
        let stays = found == self.seen;
        self.seen = found;
        let tell = stays && found != self.told;
        if tell {
            self.told = found;
        }
        tell
    }
}

/// Calls `changed` whenever one of the files changed, comes or goes. What is there at first is no change.
pub(super) async fn changes(files: &[PathBuf], mut changed: impl FnMut()) {
    let mut watches: Vec<_> = files.iter().map(|file| Watch::new(stamp(file))).collect();
    let mut looks = tokio::time::interval(INTERVAL);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let looked = watches.iter_mut().zip(files);
        // All are looked at, whatever the first finds.
        let told = looked.map(|(watch, file)| watch.handle_look(stamp(file)));
        if told.fold(false, |any, told| any | told) {
            changed();
        }
    }
}

fn stamp(file: &Path) -> Option<Stamp> {
    let found = fs::metadata(file).ok()?;
    Some(Stamp {
        device: found.dev(),
        inode: found.ino(),
        size: found.size(),
        modified: (found.mtime(), found.mtime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each letter is what a look finds, the first before the watch begins; in capitals where it is told.
    fn check(looks: &str) {
        let mut found = looks.to_lowercase().into_bytes().into_iter();
        let mut watch = Watch::new(found.next().unwrap());
        let told: String = found
            .map(|found| {
                let told = watch.handle_look(found);
                char::from(if told { found.to_ascii_uppercase() } else { found })
            })
            .collect();
        assert_eq!(told, looks[1..]);
    }

    #[test]
    fn a_change_is_told_once_and_when_it_stays() {
        check("aaaa");
        check("abBbb");
        check("abcdDd");
    }

    #[test]
    fn what_is_undone_in_between_is_no_change() {
        check("abaa");
        check("abBbcbb");
    }

    #[test]
    fn an_exchanged_link_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for version in ["1", "2"] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("crl.pem"), version).unwrap();
        }
        std::os::unix::fs::symlink("1", at("data")).unwrap();
        let file = at("data").join("crl.pem");
        let before = stamp(&file);
        std::os::unix::fs::symlink("2", at("data.new")).unwrap();
        fs::rename(at("data.new"), at("data")).unwrap();
        assert_ne!(stamp(&file), before);
        fs::remove_file(at("data")).unwrap();
        assert_eq!(stamp(&file), None);
    }
}
