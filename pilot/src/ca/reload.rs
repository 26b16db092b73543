//! The root as its files are at present.
//!
//! In: a folder. Out: the [`Authority`] of its files, loaded again when they have changed; the last good one stays while
//! they are wrong. It looks when it is asked, which costs two system calls beside a signature.

use std::{
    error::Error,
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use mesh::identity::Authority;

use super::{
    files::{self, OpenError},
    plugged::Place,
};

/// Tells one state of the files from another: files are replaced whole, so each has an inode of its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Stamp(Vec<Option<(u64, i64, i64)>>);

impl Stamp {
    pub(super) fn of(files: &[PathBuf]) -> Self {
        let stamps = files.iter().map(|path| {
            let found = fs::metadata(path).ok()?;
            Some((found.ino(), found.mtime(), found.mtime_nsec()))
        });
        Self(stamps.collect())
    }
}

pub(super) struct Reloaded {
    place: Place,
    files: Vec<PathBuf>,
    current: Mutex<Current>,
}

struct Current {
    stamp: Stamp,
    authority: Arc<Authority>,
}

impl Reloaded {
    /// Loads it. Of a root of our own, makes what is missing.
    pub(super) fn open(
        place: Place,
        trust_domain: &str,
        now: SystemTime,
    ) -> Result<Self, OpenError> {
        if !place.is_plugged() {
            files::open(place.dir(), trust_domain, now)?;
        }
        let files = place.files();
        // Looked at before it is read: what changes in between is noticed later.
        let stamp = Stamp::of(&files);
        let authority = Arc::new(place.load(now)?);
        Ok(Self { place, files, current: Mutex::new(Current { stamp, authority }) })
    }

    /// The root as its files are, or as they last were when they were good.
    pub(super) fn authority(&self) -> Arc<Authority> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp::of(&self.files);
        if stamp != current.stamp {
            current.stamp = stamp;
            match self.place.load(SystemTime::now()) {
                Ok(authority) => {
                    tracing::info!(dir = %self.place.dir().display(), "the root's files have changed");
                    current.authority = Arc::new(authority);
                }
                Err(error) => tracing::error!(
                    dir = %self.place.dir().display(),
                    error = &error as &dyn Error,
                    "the root's files have changed and cannot be used; the former root stays in force"
                ),
            }
        }
        current.authority.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{RotationStep, files::CERTIFICATE_FILE, rotate};

    #[test]
    fn a_rotation_is_in_force_from_the_next_certificate_on() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let root = Reloaded::open(Place::of(dir.path(), None), "cluster.local", now).unwrap();
        let before = root.authority();
        assert!(Arc::ptr_eq(&before, &root.authority()));
        rotate(dir.path(), RotationStep::Begin, "cluster.local", now).unwrap();
        let both = root.authority();
        assert_eq!(both.key_pem(), before.key_pem());
        assert!(both.roots_pem().starts_with(before.roots_pem().trim_end()));
        rotate(dir.path(), RotationStep::Switch, "cluster.local", now).unwrap();
        assert_ne!(root.authority().key_pem(), before.key_pem());
    }

    #[test]
    fn the_former_root_stays_in_force_while_the_files_are_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let root = Reloaded::open(Place::of(dir.path(), None), "cluster.local", SystemTime::now())
            .unwrap();
        let before = root.authority();
        let pem = fs::read_to_string(dir.path().join(CERTIFICATE_FILE)).unwrap();
        fs::write(dir.path().join(CERTIFICATE_FILE), "hello").unwrap();
        assert!(Arc::ptr_eq(&before, &root.authority()));
        files::replace(&dir.path().join(CERTIFICATE_FILE), &pem, 0o644).unwrap();
        assert_eq!(root.authority().roots_pem(), before.roots_pem());
    }
}
