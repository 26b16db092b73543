//! Notices that files change.
//!
//! In: paths, from before their files are read. Out: a call when what is found there has become something else and stays
//! so, and again while what was found cannot be used. It looks twice a second, which
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
/// Looks from one attempt at what cannot be used to the next: ten seconds.
const RETRY_LOOKS: u32 = 20;

/// Tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// The time above can be set to anything, as archives and copies do.
    changed: (i64, i64),
}

/// What became of a change that was told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Taken {
    /// It is in force, or needs no more.
    Done,
    /// It cannot be used yet.
    Failed,
}

/// Files, as they were when this was made.
pub(super) struct Watched {
    files: Vec<PathBuf>,
    watches: Vec<Watch<Option<Stamp>>>,
    retry: Retry,
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

/// When to try again what failed.
#[derive(Default)]
struct Retry {
    /// Looks until then; none where nothing failed.
    looks: Option<u32>,
}

impl Retry {
    fn handle_look(&mut self) -> bool {
        self.looks = self.looks.map(|looks| looks.saturating_sub(1));
        self.looks == Some(0)
    }

    fn handle_taken(&mut self, taken: Taken) {
        self.looks = match taken {
            Taken::Done => None,
            Taken::Failed => Some(RETRY_LOOKS),
        };
    }
}

impl Watched {
    /// To be made before the files are read, so that no change falls between. What is there now is no change.
    pub(super) fn new(files: &[&Path]) -> Self {
        let watches = files.iter().map(|file| Watch::new(stamp(file))).collect();
        let files = files.iter().map(|file| (*file).to_owned()).collect();
        Self { files, watches, retry: Retry::default() }
    }

    /// What was read when this was made is as a change: it is tried again if it could not be used.
    pub(super) fn read_first(mut self, taken: Taken) -> Self {
        self.retry.handle_taken(taken);
        self
    }

    /// Calls `changed` whenever one of the files changed, comes or goes, and again while it fails.
    pub(super) async fn follow(mut self, mut changed: impl FnMut() -> Taken) {
        let mut looks = tokio::time::interval(INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if self.handle_look() {
                self.retry.handle_taken(changed());
            }
        }
    }

    fn handle_look(&mut self) -> bool {
        let looked = self.watches.iter_mut().zip(&self.files);
        // All are looked at, whatever the first finds.
        let told = looked.map(|(watch, file)| watch.handle_look(stamp(file)));
        told.fold(self.retry.handle_look(), |any, told| any | told)
    }
}

fn stamp(file: &Path) -> Option<Stamp> {
    let found = fs::metadata(file).ok()?;
    Some(Stamp {
        device: found.dev(),
        inode: found.ino(),
        size: found.size(),
        modified: (found.mtime(), found.mtime_nsec()),
        changed: (found.ctime(), found.ctime_nsec()),
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
    fn what_was_exchanged_before_the_first_look_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("crl.pem");
        fs::write(&file, "old").unwrap();
        let mut watched = Watched::new(&[&file]);
        fs::write(&file, "newer").unwrap();
        assert_eq!([(); 3].map(|()| watched.handle_look()), [false, true, false]);
    }

    #[test]
    fn a_change_of_the_same_size_and_time_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("crl.pem");
        fs::write(&file, "old").unwrap();
        let before = stamp(&file).unwrap();
        let written = fs::metadata(&file).unwrap().modified().unwrap();
        // The kernel's clock for files may stand still for some milliseconds.
        let after = loop {
            fs::write(&file, "new").unwrap();
            fs::File::options().write(true).open(&file).unwrap().set_modified(written).unwrap();
            let after = stamp(&file).unwrap();
            if after.changed != before.changed {
                break after;
            }
        };
        assert_eq!(Stamp { changed: before.changed, ..after }, before);
        assert_ne!(after, before);
    }

    #[test]
    fn what_failed_is_tried_again_until_it_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("crl.pem");
        let mut watched = Watched::new(&[&file]).read_first(Taken::Failed);
        let mut looks_until_told = || (1..100).find(|_| watched.handle_look());
        assert_eq!(looks_until_told(), Some(RETRY_LOOKS));
        let mut retry = Retry::default();
        assert!(!retry.handle_look());
        retry.handle_taken(Taken::Failed);
        assert_eq!((1..100).find(|_| retry.handle_look()), Some(RETRY_LOOKS));
        retry.handle_taken(Taken::Done);
        assert_eq!((1..100).find(|_| retry.handle_look()), None);
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
