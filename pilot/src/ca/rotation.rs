//! Replaces the root while the mesh runs, in three steps that an operator takes.
//!
//! 1. `begin`: a new root is made and trusted beside the old one, which still signs.
//! 2. `switch`: the new root signs. Certificates of the old one are good until they end.
//! 3. `finish`: the old root is not trusted any more.
//!
//! Between two steps every node must have renewed its certificates. In: the folder. Out: files, each replaced whole: the
//! key that signs is the one in `root-key.pem`, and its certificate is found by the key, so that what is there is usable
//! after every single file. A step that was interrupted is taken again. A running pilot notices by itself.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use mesh::identity::{Authority, AuthorityError};

use super::{
    files::{self, CERTIFICATE_FILE, KEY_FILE, OpenError},
    plugged::Place,
};

/// The root that is to sign next.
const NEXT_KEY_FILE: &str = "next-root-key.pem";
/// The root that signed before.
const OLD_KEY_FILE: &str = "old-root-key.pem";

/// A step of the rotation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RotationStep {
    /// Trust a new root.
    Begin,
    /// Sign with it.
    Switch,
    /// Trust the old root no more.
    Finish,
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// A file is wrong.
    #[error(transparent)]
    Files(#[from] OpenError),
    /// There is nothing to switch to.
    #[error("no new root is there to switch to: begin a rotation first")]
    NotBegun,
    /// There is nothing to finish.
    #[error("the old root still signs: switch to the new one first")]
    NotSwitched,
    /// The former rotation has not come to its end.
    #[error("the root before the present one is still trusted: finish that rotation first")]
    NotFinished,
}

/// Takes one step. `trust_domain` becomes the subject of a new root.
///
/// # Errors
/// [`RotationError`]; then nothing that signs or is trusted has changed.
pub fn rotate(
    dir: &Path,
    step: RotationStep,
    trust_domain: &str,
    now: SystemTime,
) -> Result<(), RotationError> {
    if Place::of(dir, None).is_plugged() {
        return Err(OpenError::IsPlugged { dir: dir.into() }.into());
    }
    let _locked = files::lock(dir)?;
    let rotation = Rotation { dir };
    match step {
        RotationStep::Begin => rotation.begin(trust_domain, now),
        RotationStep::Switch => rotation.switch(),
        RotationStep::Finish => rotation.finish(),
    }
}

/// The keys of all roots of the folder that can sign: the present one, then those that come or go.
pub(super) fn keys(dir: &Path) -> Result<Vec<String>, OpenError> {
    let mut keys = vec![files::read_key(&dir.join(KEY_FILE))?];
    for other in [NEXT_KEY_FILE, OLD_KEY_FILE].map(|name| dir.join(name)) {
        if files::read(&other)?.is_some() {
            keys.push(files::read_key(&other)?);
        }
    }
    keys.dedup();
    Ok(keys)
}

struct Rotation<'a> {
    dir: &'a Path,
}

impl Rotation<'_> {
    fn begin(&self, trust_domain: &str, now: SystemTime) -> Result<(), RotationError> {
        let next = self.path(NEXT_KEY_FILE);
        files::load(self.dir, now)?;
        if files::read(&next)?.is_none() {
            if files::read(&self.path(OLD_KEY_FILE))?.is_some() {
                return Err(RotationError::NotFinished);
            }
            let made = Authority::create(trust_domain, files::root_validity(now))
                .map_err(|source| self.unusable(source))?;
            files::create(&next, &made.key_pem(), 0o600)?;
        }
        let key = files::read_key(&next)?;
        let roots = self.roots()?;
        if Authority::load(&key, &roots).is_err() {
            let made = Authority::certify(&key, trust_domain, files::root_validity(now))
                .map_err(|source| self.unusable(source))?;
            let both = format!("{}\n{}", roots.trim_end(), made.roots_pem());
            files::replace(&self.path(CERTIFICATE_FILE), &both, 0o644)?;
        }
        Ok(())
    }

    fn switch(&self) -> Result<(), RotationError> {
        let (next, key) = (self.path(NEXT_KEY_FILE), self.path(KEY_FILE));
        if files::read(&next)?.is_none() {
            return Err(RotationError::NotBegun);
        }
        // It must be trusted before it signs.
        Authority::load(&files::read_key(&next)?, &self.roots()?)
            .map_err(|_| RotationError::NotBegun)?;
        files::replace(&self.path(OLD_KEY_FILE), &files::read_key(&key)?, 0o600)?;
        fs::rename(&next, &key).map_err(|source| OpenError::Write { path: key, source }.into())
    }

    fn finish(&self) -> Result<(), RotationError> {
        let old = self.path(OLD_KEY_FILE);
        if files::read(&old)?.is_none() || files::read(&self.path(NEXT_KEY_FILE))?.is_some() {
            return Err(RotationError::NotSwitched);
        }
        let rest = Authority::without(&files::read_key(&old)?, &self.roots()?)
            .map_err(|source| self.unusable(source))?;
        // What is left must be able to sign.
        Authority::load(&files::read_key(&self.path(KEY_FILE))?, &rest)
            .map_err(|source| self.unusable(source))?;
        files::replace(&self.path(CERTIFICATE_FILE), &rest, 0o644)?;
        match fs::remove_file(&old) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(OpenError::Write { path: old, source }.into())
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn roots(&self) -> Result<String, OpenError> {
        files::must_read(&self.path(CERTIFICATE_FILE))
    }

    fn unusable(&self, source: AuthorityError) -> OpenError {
        OpenError::Unusable { dir: self.dir.into(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(dir: &Path, step: RotationStep) -> String {
        match rotate(dir, step, "cluster.local", SystemTime::now()) {
            Ok(()) => "done".into(),
            Err(error) => error.to_string(),
        }
    }

    /// Who signs, and how many are trusted.
    fn state(dir: &Path) -> (String, usize) {
        let authority = files::load(dir, SystemTime::now()).unwrap();
        (authority.key_pem(), authority.roots_pem().matches("BEGIN CERTIFICATE").count())
    }

    #[test]
    fn a_new_root_is_trusted_then_signs_then_stands_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        files::open(dir, "cluster.local", SystemTime::now()).unwrap();
        let (old, trusted) = state(dir);
        assert_eq!(trusted, 1);
        assert_eq!(take(dir, RotationStep::Begin), "done");
        assert_eq!(state(dir), (old.clone(), 2));
        assert_eq!(keys(dir).unwrap().len(), 2);
        assert_eq!(take(dir, RotationStep::Switch), "done");
        let (new, trusted) = state(dir);
        assert_ne!(new, old);
        assert_eq!(trusted, 2);
        assert_eq!(take(dir, RotationStep::Finish), "done");
        assert_eq!(state(dir), (new, 1));
        assert_eq!(keys(dir).unwrap().len(), 1);
    }

    #[test]
    fn steps_are_taken_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        files::open(dir, "cluster.local", SystemTime::now()).unwrap();
        let not_begun = "no new root is there to switch to: begin a rotation first";
        let not_switched = "the old root still signs: switch to the new one first";
        assert_eq!(take(dir, RotationStep::Switch), not_begun);
        assert_eq!(take(dir, RotationStep::Finish), not_switched);
        take(dir, RotationStep::Begin);
        assert_eq!(take(dir, RotationStep::Finish), not_switched);
        take(dir, RotationStep::Switch);
        assert_eq!(take(dir, RotationStep::Switch), not_begun);
        let not_finished =
            "the root before the present one is still trusted: finish that rotation first";
        assert_eq!(take(dir, RotationStep::Begin), not_finished);
    }

    #[test]
    fn a_step_that_was_interrupted_is_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        files::open(dir, "cluster.local", SystemTime::now()).unwrap();
        let roots = files::must_read(&dir.join(CERTIFICATE_FILE)).unwrap();
        take(dir, RotationStep::Begin);
        // As if it had ended after the key's file.
        fs::write(dir.join(CERTIFICATE_FILE), roots).unwrap();
        let not_begun = "no new root is there to switch to: begin a rotation first";
        assert_eq!(take(dir, RotationStep::Switch), not_begun);
        assert_eq!(take(dir, RotationStep::Begin), "done");
        assert_eq!(take(dir, RotationStep::Begin), "done");
        assert_eq!(state(dir).1, 2);
        // As if the switch had ended after the copy of the old key.
        fs::copy(dir.join(KEY_FILE), dir.join(OLD_KEY_FILE)).unwrap();
        assert_eq!(take(dir, RotationStep::Switch), "done");
        assert_eq!(take(dir, RotationStep::Finish), "done");
        assert_eq!(state(dir).1, 1);
    }
}
