//! The root as its files are at present.
//!
//! In: a folder. Out: the [`Authority`] of its files, loaded again when they have changed; the last good one stays while
//! they are wrong. It looks when it is asked, which costs two system calls beside a signature.

use std::{
    error::Error,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use mesh::identity::Authority;

use super::files::{self, CERTIFICATE_FILE, KEY_FILE, OpenError};

/// Tells one state of the files from another: files are replaced whole, so each has an inode of its own.
type Stamp = [Option<(u64, i64, i64)>; 2];

pub(super) struct Reloaded {
    dir: PathBuf,
    current: Mutex<Current>,
}

struct Current {
    stamp: Stamp,
    authority: Arc<Authority>,
}

impl Reloaded {
    /// Loads the root, or makes what is missing of it.
    pub(super) fn open(dir: &Path, trust_domain: &str, now: SystemTime) -> Result<Self, OpenError> {
        files::open(dir, trust_domain, now)?;
        // Looked at before it is read: what changes in between is noticed later.
        let stamp = stamp(dir);
        let authority = Arc::new(files::load(dir, now)?);
        Ok(Self { dir: dir.into(), current: Mutex::new(Current { stamp, authority }) })
    }

    /// The root as its files are, or as they last were when they were good.
    pub(super) fn authority(&self) -> Arc<Authority> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.dir);
        if stamp != current.stamp {
            current.stamp = stamp;
            match files::load(&self.dir, SystemTime::now()) {
                Ok(authority) => {
                    tracing::info!(dir = %self.dir.display(), "the root's files have changed");
                    current.authority = Arc::new(authority);
                }
                Err(error) => tracing::error!(
                    dir = %self.dir.display(),
                    error = &error as &dyn Error,
                    "the root's files have changed and cannot be used; the former root stays in force"
                ),
            }
        }
        current.authority.clone()
    }
}

fn stamp(dir: &Path) -> Stamp {
    [KEY_FILE, CERTIFICATE_FILE].map(|name| {
        let found = fs::metadata(dir.join(name)).ok()?;
        Some((found.ino(), found.mtime(), found.mtime_nsec()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{RotationStep, rotate};

    #[test]
    fn a_rotation_is_in_force_from_the_next_certificate_on() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let root = Reloaded::open(dir.path(), "cluster.local", now).unwrap();
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
        let root = Reloaded::open(dir.path(), "cluster.local", SystemTime::now()).unwrap();
        let before = root.authority();
        let pem = fs::read_to_string(dir.path().join(CERTIFICATE_FILE)).unwrap();
        fs::write(dir.path().join(CERTIFICATE_FILE), "hello").unwrap();
        assert!(Arc::ptr_eq(&before, &root.authority()));
        files::replace(&dir.path().join(CERTIFICATE_FILE), &pem, 0o644).unwrap();
        assert_eq!(root.authority().roots_pem(), before.roots_pem());
    }
}
