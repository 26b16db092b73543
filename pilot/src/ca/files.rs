//! The root's two files: `root-key.pem`, for nobody's eyes, and `root-cert.pem`, for everybody's.
//!
//! In: a folder. Out: a usable [`Authority`], or an [`OpenError`] that says which file is wrong and what to do. A file
//! appears whole or not at all.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use mesh::identity::{Authority, AuthorityError, PluggedError, Validity};
use tempfile::NamedTempFile;

pub(super) const KEY_FILE: &str = "root-key.pem";
pub(super) const CERTIFICATE_FILE: &str = "root-cert.pem";
/// Never written, never removed: who waits for it waits for this file.
const LOCK_FILE: &str = "lock";
/// Ten years, as Istio's own root: rotating it is an operator's decision, which `root-cert.pem` allows for.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Nodes whose clocks lag behind ours by less trust a root that was just made.
const BACK_DATED: Duration = Duration::from_secs(24 * 3600);

/// Why the root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made.
    #[error("making the folder {}", .path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("reading {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("writing {}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The folder cannot be locked against others who change its files.
    #[error("locking {}", .path.display())]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Others can read the key, so they can be anybody in the mesh.
    #[error(
        "{} can be used by others than its owner (mode {mode:04o}); if nobody else has read it, run \
         `chmod 600 {}`, otherwise remove it and root-cert.pem to make a new root",
        .path.display(), .path.display()
    )]
    KeyExposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The certificate is there, and its key is not.
    #[error(
        "{} is there, but its key {} is not; restore the key, or remove the certificate to make a \
         new root",
        .certificate.display(), .key.display()
    )]
    KeyMissing {
        /// The certificate's file.
        certificate: PathBuf,
        /// The file that is missing.
        key: PathBuf,
    },
    /// The files' contents cannot be used.
    #[error("the root in {} cannot be used", .dir.display())]
    Unusable {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        source: AuthorityError,
    },
    /// The files that others made cannot be used.
    #[error("the authority in {} cannot be used", .dir.display())]
    Plugged {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        source: PluggedError,
    },
    /// What others made is theirs to replace.
    #[error("the authority in {} was made by others: put their new files in its place", .dir.display())]
    IsPlugged {
        /// The folder.
        dir: PathBuf,
    },
    /// The root has ended.
    #[error(
        "the root certificate {} has expired; put a new one for the same key in its place, or remove \
         it to have one made",
        .path.display()
    )]
    Expired {
        /// The certificate's file.
        path: PathBuf,
    },
}

/// Loads the root, or makes what is missing of it.
///
/// A key without a certificate is what an interrupted start leaves: the certificate is made for it. Two processes that
/// start at once end up with the files of whichever was first.
pub(super) fn open(
    dir: &Path,
    trust_domain: &str,
    now: SystemTime,
) -> Result<Authority, OpenError> {
    let (key_path, certificate_path) = (dir.join(KEY_FILE), dir.join(CERTIFICATE_FILE));
    let unusable = |source| OpenError::Unusable { dir: dir.into(), source };
    let validity = root_validity(now);
    make_folder(dir)?;

    if read(&key_path)?.is_none() {
        if read(&certificate_path)?.is_some() {
            return Err(OpenError::KeyMissing { certificate: certificate_path, key: key_path });
        }
        let made = Authority::create(trust_domain, validity).map_err(unusable)?;
        create(&key_path, &made.key_pem(), 0o600)?;
    }
    let key_pem = read_key(&key_path)?;
    if read(&certificate_path)?.is_none() {
        let made = Authority::certify(&key_pem, trust_domain, validity).map_err(unusable)?;
        create(&certificate_path, made.roots_pem(), 0o644)?;
    }
    load(dir, now)
}

/// Makes the data folder, for nobody else's eyes, if it is not there.
pub(super) fn make_folder(dir: &Path) -> Result<(), OpenError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| OpenError::Folder { path: dir.into(), source })
}

/// Loads the root that is there.
pub(super) fn load(dir: &Path, now: SystemTime) -> Result<Authority, OpenError> {
    let certificate_path = dir.join(CERTIFICATE_FILE);
    let key_pem = read_key(&dir.join(KEY_FILE))?;
    let roots_pem = must_read(&certificate_path)?;
    let authority = Authority::load(&key_pem, &roots_pem)
        .map_err(|source| OpenError::Unusable { dir: dir.into(), source })?;
    if authority.root_not_after() <= now {
        return Err(OpenError::Expired { path: certificate_path });
    }
    Ok(authority)
}

/// The validity of a new root.
pub(super) fn root_validity(now: SystemTime) -> Validity {
    Validity::starting(now, BACK_DATED, ROOT_LIFETIME)
}

pub(super) fn read(path: &Path) -> Result<Option<String>, OpenError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OpenError::Read { path: path.into(), source }),
    }
}

pub(super) fn must_read(path: &Path) -> Result<String, OpenError> {
    fs::read_to_string(path).map_err(|source| OpenError::Read { path: path.into(), source })
}

pub(super) fn read_key(path: &Path) -> Result<String, OpenError> {
    let metadata =
        fs::metadata(path).map_err(|source| OpenError::Read { path: path.into(), source })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(OpenError::KeyExposed { path: path.into(), mode });
    }
    must_read(path)
}

/// Writes a file that is not there yet: whole, on disk, and under its name last. If another process was faster, its
/// file stays.
pub(super) fn create(path: &Path, text: &str, mode: u32) -> Result<(), OpenError> {
    write(path, text, mode, |file| match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error),
    })
}

/// As [`create`], in the place of what is there.
pub(super) fn replace(path: &Path, text: &str, mode: u32) -> Result<(), OpenError> {
    write(path, text, mode, |file| file.persist(path).map(drop).map_err(|error| error.error))
}

/// The folder for one that changes several files, or one by what it has read: others wait. It is free again when this is
/// dropped, or its process ends.
pub(super) struct Locked {
    _file: fs::File,
}

/// Waits for the folder.
pub(super) fn lock(dir: &Path) -> Result<Locked, OpenError> {
    let path = dir.join(LOCK_FILE);
    let lock = || -> io::Result<fs::File> {
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    match lock() {
        Ok(file) => Ok(Locked { _file: file }),
        Err(source) => Err(OpenError::Lock { path, source }),
    }
}

fn write(
    path: &Path,
    text: &str,
    mode: u32,
    persist: impl FnOnce(NamedTempFile) -> io::Result<()>,
) -> Result<(), OpenError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(dir)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        persist(file)?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| OpenError::Write { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_now(dir: &Path) -> Result<Authority, OpenError> {
        open(dir, "cluster.local", SystemTime::now())
    }

    fn refusal(dir: &Path) -> String {
        let error = open_now(dir).err().expect("refused");
        let reason = std::error::Error::source(&error).map_or(String::new(), |s| format!(": {s}"));
        format!("{error}{reason}").replace(&dir.display().to_string(), "DIR")
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_root_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("data/ca");
        let first = open_now(&inside).unwrap();
        let second = open_now(&inside).unwrap();
        assert_eq!(first.roots_pem(), second.roots_pem());
        assert_eq!(first.key_pem(), second.key_pem());
        assert_eq!(mode(&inside), 0o700);
        assert_eq!(mode(&inside.join(KEY_FILE)), 0o600);
        assert_eq!(mode(&inside.join(CERTIFICATE_FILE)), 0o644);
        assert_eq!(fs::read_dir(&inside).unwrap().count(), 2);
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        open_now(dir.path()).unwrap();
        for exposed in [0o640, 0o604, 0o620] {
            let key = dir.path().join(KEY_FILE);
            fs::set_permissions(&key, fs::Permissions::from_mode(exposed)).unwrap();
            assert_eq!(
                refusal(dir.path()),
                format!(
                    "DIR/root-key.pem can be used by others than its owner (mode {exposed:04o}); if \
                     nobody else has read it, run `chmod 600 DIR/root-key.pem`, otherwise remove it \
                     and root-cert.pem to make a new root"
                )
            );
        }
    }

    #[test]
    fn an_interrupted_start_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        let before = open_now(dir.path()).unwrap();
        fs::remove_file(dir.path().join(CERTIFICATE_FILE)).unwrap();
        let after = open_now(dir.path()).unwrap();
        assert_eq!(before.key_pem(), after.key_pem());
        assert_ne!(before.roots_pem(), after.roots_pem());
    }

    #[test]
    fn a_certificate_whose_key_is_missing_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        open_now(dir.path()).unwrap();
        fs::remove_file(dir.path().join(KEY_FILE)).unwrap();
        assert_eq!(
            refusal(dir.path()),
            "DIR/root-cert.pem is there, but its key DIR/root-key.pem is not; restore the key, or \
             remove the certificate to make a new root"
        );
    }

    #[test]
    fn a_certificate_of_another_key_is_refused() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        open_now(dir.path()).unwrap();
        let foreign = open_now(other.path()).unwrap();
        fs::write(dir.path().join(CERTIFICATE_FILE), foreign.roots_pem()).unwrap();
        assert_eq!(
            refusal(dir.path()),
            "the root in DIR cannot be used: the root certificate is for another key than the root key"
        );
    }

    #[test]
    fn damaged_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        open_now(dir.path()).unwrap();
        fs::write(dir.path().join(CERTIFICATE_FILE), "hello").unwrap();
        assert_eq!(
            refusal(dir.path()),
            "the root in DIR cannot be used: the root certificate cannot be read: no certificate in it"
        );
        fs::write(dir.path().join(KEY_FILE), "hello").unwrap();
        assert_eq!(
            refusal(dir.path()),
            "the root in DIR cannot be used: the root key is not a usable PKCS#8 key in PEM"
        );
    }

    #[test]
    fn an_expired_root_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let long_ago = SystemTime::now() - 2 * ROOT_LIFETIME;
        open(dir.path(), "cluster.local", long_ago).unwrap();
        assert!(
            refusal(dir.path()).starts_with("the root certificate DIR/root-cert.pem has expired")
        );
    }

    #[test]
    fn further_roots_in_the_file_are_kept() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let own = open_now(dir.path()).unwrap();
        let both = format!("{}{}", own.roots_pem(), open_now(other.path()).unwrap().roots_pem());
        fs::write(dir.path().join(CERTIFICATE_FILE), &both).unwrap();
        assert_eq!(open_now(dir.path()).unwrap().roots_pem(), both);
    }

    #[test]
    fn two_that_start_at_once_share_one_root() {
        let dir = tempfile::tempdir().unwrap();
        let roots: Vec<String> = std::thread::scope(|scope| {
            let starts: Vec<_> =
                (0..8).map(|_| scope.spawn(|| open_now(dir.path()).unwrap())).collect();
            starts.into_iter().map(|s| s.join().unwrap().roots_pem().to_owned()).collect()
        });
        assert!(roots.iter().all(|root| *root == roots[0]));
    }
}
