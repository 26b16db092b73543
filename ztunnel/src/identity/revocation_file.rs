//! The file of revocation lists: what is in force of it.
//!
//! In: a path. Out: lists to put in force, at first and after a change. A file that is not there revokes nobody, as
//! where an authority has no lists. One that is there and cannot be used keeps the daemon from starting, and later leaves
//! the former lists in force, as does one that is taken away: to go on without them would let revoked peers in.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use mesh::identity::{RevocationError, Revocations};
use metrics::{counter, gauge};

/// The largest file that is read. An entry takes some 40 bytes.
const LIMIT_BYTES: u64 = 64 << 20;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RevocationFileError {
    #[error("it cannot be read")]
    Read { source: io::Error },
    #[error("it has {bytes} bytes, more than {LIMIT_BYTES}")]
    TooLarge { bytes: u64 },
    #[error(transparent)]
    Content(#[from] RevocationError),
    #[error("it is not there any more")]
    Gone,
}

/// What came of reading the file again.
#[derive(Debug)]
pub(super) enum Reload {
    /// Lists to put in force.
    Lists(Revocations),
    /// It is not there, and never was.
    Nothing,
    /// It cannot be used.
    Failed,
}

/// The file, and whether it was ever there.
pub(super) struct RevocationFile {
    path: PathBuf,
    is_in_force: bool,
}

impl RevocationFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, is_in_force: false }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The lists to begin with: none, if the file is not there.
    ///
    /// # Errors
    /// What is wrong with a file that is there.
    pub(super) fn begin(&mut self) -> Result<Revocations, RevocationFileError> {
        Ok(self.take()?.unwrap_or_default())
    }

    /// Reads the file again after a change. What is wrong with it is logged.
    pub(super) fn reload(&mut self) -> Reload {
        match self.take() {
            Ok(Some(lists)) => {
                counter!("aquifer_crl_loads_total", "result" => "ok").increment(1);
                Reload::Lists(lists)
            }
            Ok(None) => Reload::Nothing,
            Err(error) => {
                counter!("aquifer_crl_loads_total", "result" => "error").increment(1);
                let error = &error as &dyn std::error::Error;
                tracing::error!(file = %self.path.display(), error, "the former revocation lists stay in force");
                Reload::Failed
            }
        }
    }

    fn take(&mut self) -> Result<Option<Revocations>, RevocationFileError> {
        let bytes = match read(&self.path) {
            Ok(bytes) => bytes,
            Err(RevocationFileError::Read { source })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                return if self.is_in_force { Err(RevocationFileError::Gone) } else { Ok(None) };
            }
            Err(error) => return Err(error),
        };
        let lists = Revocations::parse(&bytes)?;
        self.is_in_force = true;
        tell(&self.path, &lists);
        Ok(Some(lists))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, RevocationFileError> {
    let unreadable = |source| RevocationFileError::Read { source };
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > LIMIT_BYTES {
        return Err(RevocationFileError::TooLarge { bytes });
    }
    fs::read(path).map_err(unreadable)
}

fn tell(path: &Path, lists: &Revocations) {
    tracing::info!(file = %path.display(), certificates = lists.count(), "revocation lists in force");
    #[expect(clippy::cast_precision_loss, reason = "a metric; exact up to 2^53")]
    gauge!("aquifer_crl_revoked_certificates").set(lists.count() as f64);
    let Some(next) = lists.next_update() else { return };
    let seconds = next.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    gauge!("aquifer_crl_next_update_seconds").set(seconds);
    if next < SystemTime::now() {
        tracing::warn!(file = %path.display(), "a revocation list should have been replaced by a newer one; it stays in force");
    }
}

#[cfg(test)]
mod tests {
    use mesh::identity::LocalCa;

    use super::*;

    fn list() -> String {
        LocalCa::new("cluster.local").unwrap().revocation_list(&[]).unwrap()
    }

    fn opened(content: Option<&str>) -> (tempfile::TempDir, RevocationFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca-crl.pem");
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        (dir, RevocationFile::new(path))
    }

    #[test]
    fn a_file_that_is_not_there_revokes_nobody_and_may_come() {
        let (_dir, mut file) = opened(None);
        assert_eq!(file.begin().unwrap().count(), 0);
        assert!(matches!(file.reload(), Reload::Nothing));
        fs::write(file.path(), list()).unwrap();
        assert!(matches!(file.reload(), Reload::Lists(_)));
    }

    #[test]
    fn a_bad_file_keeps_the_daemon_from_starting() {
        let (_dir, mut file) = opened(Some("hello"));
        let refusal = file.begin().unwrap_err().to_string();
        assert_eq!(refusal, "it holds no revocation list in PEM or DER: no list in it");
    }

    #[test]
    fn a_file_that_turns_bad_or_goes_leaves_the_former_lists_in_force() {
        let (_dir, mut file) = opened(Some(&list()));
        file.begin().unwrap();
        fs::write(file.path(), "hello").unwrap();
        assert!(matches!(file.reload(), Reload::Failed));
        fs::remove_file(file.path()).unwrap();
        assert!(matches!(file.reload(), Reload::Failed));
        assert!(matches!(file.take(), Err(RevocationFileError::Gone)));
        fs::write(file.path(), list()).unwrap();
        assert!(matches!(file.reload(), Reload::Lists(_)));
    }
}
