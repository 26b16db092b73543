//! The registry's files: one JSON record per pod, so that a restarted daemon knows its pods.
//!
//! In: records to keep or to forget. Out: the records kept, and what could not be read.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{PodRecord, PodUid};

/// A folder of records.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

/// A file that is no record.
#[derive(Debug, thiserror::Error)]
pub enum BadRecord {
    /// It cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is no record.
    #[error("{path}: {source}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// Its name is not its uid.
    #[error("{path}: the record is of pod {uid}, expected in {uid}.json", path = path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// The uid in it.
        uid: PodUid,
    },
}

impl Folder {
    /// Opens the folder, which is made if it is not there, for the owner alone.
    ///
    /// # Errors
    /// The system's, if it cannot be made.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self { path: path.to_owned() })
    }

    /// All records, and the files that are none. Files that do not end in `.json` are passed over.
    ///
    /// # Errors
    /// The system's, if the folder itself cannot be read.
    pub fn load(&self) -> io::Result<(Vec<PodRecord>, Vec<BadRecord>)> {
        let (mut records, mut bad) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match read(&path) {
                    Ok(record) => records.push(record),
                    Err(error) => bad.push(error),
                }
            }
        }
        records.sort_by(|a, b| a.uid.cmp(&b.uid));
        Ok((records, bad))
    }

    /// The record of a pod, if there is one that can be read.
    pub fn find(&self, uid: &PodUid) -> Option<PodRecord> {
        read(&self.file(uid)).ok()
    }

    /// Keeps a record. The file appears whole or not at all.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, record: &PodRecord) -> io::Result<()> {
        let temporary = self.path.join(format!("{}.new", record.uid));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        serde_json::to_writer_pretty(&mut file, record)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&temporary, self.file(&record.uid))
    }

    /// Forgets a record; one that is not there is no error.
    ///
    /// # Errors
    /// The system's.
    pub fn delete(&self, uid: &PodUid) -> io::Result<()> {
        match fs::remove_file(self.file(uid)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// The file of a pod's record.
    pub fn file(&self, uid: &PodUid) -> PathBuf {
        self.path.join(format!("{uid}.json"))
    }
}

fn read(path: &Path) -> Result<PodRecord, BadRecord> {
    let text = fs::read(path).map_err(|source| BadRecord::Read { path: path.into(), source })?;
    let record: PodRecord = serde_json::from_slice(&text)
        .map_err(|source| BadRecord::Parse { path: path.into(), source })?;
    if path.file_stem().and_then(|stem| stem.to_str()) != Some(record.uid.as_str()) {
        return Err(BadRecord::Name { path: path.into(), uid: record.uid });
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: &str) -> PodRecord {
        let json = format!(
            r#"{{"uid":"{uid}","namespace":"shop","name":"web","netns":"/run/netns/web"}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn records_survive_and_are_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::open(&directory.path().join("pods")).unwrap();
        folder.save(&record("b")).unwrap();
        folder.save(&record("a")).unwrap();
        assert_eq!(folder.load().unwrap().0, [record("a"), record("b")]);
        folder.delete(&record("a").uid).unwrap();
        folder.delete(&record("a").uid).unwrap();
        assert_eq!(folder.load().unwrap().0, [record("b")]);
    }

    #[test]
    fn a_bad_file_is_named_and_the_others_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::open(directory.path()).unwrap();
        folder.save(&record("good")).unwrap();
        fs::write(directory.path().join("torn.json"), "{\n  \"uid\": \"torn\"").unwrap();
        fs::copy(folder.file(&record("good").uid), directory.path().join("other.json")).unwrap();
        let (records, bad) = folder.load().unwrap();
        assert_eq!(records, [record("good")]);
        let mut bad: Vec<String> = bad.iter().map(ToString::to_string).collect();
        bad.sort();
        assert!(
            bad[0].ends_with("other.json: the record is of pod good, expected in good.json"),
            "{bad:?}"
        );
        assert!(bad[1].contains("torn.json: EOF while parsing an object at line 2"), "{bad:?}");
    }
}
