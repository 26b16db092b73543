//! A folder of YAML files, kept in memory and read again where it changed.
//!
//! In: the folder's path, and which files something is known to have happened to. Out: [`Manifests`] and problems. A
//! resource that cannot be taken is refused alone: its last good form counts, wherever it stood.
//! Does not wait for changes: the caller watches.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use super::{Kind, Manifests, Place, Problem, Resource, Severity, document, document::Found};

/// The files of a folder, decoded.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
}

#[derive(Debug)]
struct File {
    /// Nothing if it could not even be looked at.
    stamp: Option<Stamp>,
    found: Found,
    /// Earlier forms of what it does not hold in a form that can be taken.
    kept: Vec<Resource>,
    /// What counts in place of what never had such a form.
    stand_ins: Vec<Resource>,
    problems: Vec<Problem>,
    /// Whether nobody has ever known what it holds.
    opaque: bool,
}

/// What changes when a file's content does, short of reading it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

/// Why a folder says nothing about the mesh.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It is not there, or not ours to read.
    #[error("reading the folder {folder}")]
    Read {
        /// Its path.
        folder: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A volume that is not mounted looks so, and a wrong path: an empty mesh is never meant.
    #[error("the folder {folder} holds no manifests")]
    Empty {
        /// Its path.
        folder: PathBuf,
    },
}

impl Folder {
    /// A folder of which nothing has been read.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), files: BTreeMap::new() }
    }

    /// Its path, as given.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Reads the files that are new or changed, and those in `touched` in any case; forgets those that are gone.
    /// Says whether anything was read or forgotten.
    ///
    /// # Errors
    /// [`FolderError`] if the folder itself cannot be read or has no manifest; what was known stays known.
    pub fn refresh(&mut self, touched: &HashSet<PathBuf>) -> Result<bool, FolderError> {
        let mut walk = Walk::default();
        walk.folder(&self.root, &mut Vec::new())
            .map_err(|source| FolderError::Read { folder: self.root.clone(), source })?;
        if walk.files.is_empty() && walk.failed.is_empty() {
            return Err(FolderError::Empty { folder: self.root.clone() });
        }
        let unchanged = |path: &PathBuf, stamp: &Stamp| {
            !touched.contains(path)
                && self.files.get(path).is_some_and(|file| file.stamp == Some(*stamp))
        };
        let stale: Vec<_> =
            walk.files.iter().filter(|(path, stamp)| !unchanged(path, stamp)).cloned().collect();
        let failed = walk.failed.iter().map(|(path, error)| {
            (path.clone(), File::failed(path, None, 1, format!("cannot be read: {error}")))
        });
        let mut failed: Vec<_> = failed.collect();
        let mut read = read_all(&stale, &self.files);
        // Before anything is forgotten: a resource may have moved from one file to another.
        for (path, file) in read.iter_mut().chain(&mut failed) {
            self.keep(path, file);
        }
        let before = self.files.len();
        let present = walk.files.iter().map(|(path, _)| path);
        let present: HashSet<_> = present.chain(walk.failed.iter().map(|(path, _)| path)).collect();
        self.files.retain(|path, _| present.contains(path));
        let mut changed = !stale.is_empty() || self.files.len() != before;
        for (path, file) in read {
            self.files.insert(path, file);
        }
        for (path, file) in failed {
            changed |= self.files.get(&path).is_none_or(|known| known.problems != file.problems);
            self.files.insert(path, file);
        }
        Ok(changed)
    }

    /// Gives a file the last good forms of what it does not hold in a good form.
    fn keep(&self, path: &Path, file: &mut File) {
        let earlier = self.files.get(path);
        file.opaque = file.found.unknown && earlier.is_none_or(|earlier| earlier.opaque);
        for refused in &file.found.refused {
            let own = self.files.get(path).into_iter();
            let mut earlier = own.chain(self.files.values()).flat_map(File::good);
            match earlier.find(|resource| refused.is(resource)) {
                Some(earlier) => file.kept.push(earlier.clone()),
                None => file.stand_ins.extend(refused.stand_in.clone()),
            }
        }
        let (true, Some(earlier)) = (file.found.unknown, earlier) else { return };
        // Any of them may be what cannot be read.
        let holds = |resource: &&Resource| {
            file.found.resources.iter().any(|own| identity(own) == identity(resource))
                || file.found.refused.iter().any(|refused| refused.is(resource))
        };
        let missing: Vec<_> = earlier.good().filter(|one| !holds(one)).cloned().collect();
        let stand_ins: Vec<_> =
            earlier.stand_ins.iter().filter(|one| !holds(one)).cloned().collect();
        file.kept.extend(missing);
        file.stand_ins.extend(stand_ins);
    }

    /// A file of which it was never known what it holds.
    pub fn opaque(&self) -> Option<&Path> {
        self.files.iter().find(|(_, file)| file.opaque).map(|(path, _)| path.as_path())
    }

    /// Everything that has been read, checked against each other, in a mesh with this root namespace.
    pub fn load(&self, root_namespace: &str) -> (Manifests, Vec<Problem>) {
        let good = self.files.values().flat_map(|file| &file.found.resources);
        let kept = || self.files.values().flat_map(|file| file.kept.iter().chain(&file.stand_ins));
        let (manifests, across) = if kept().next().is_none() {
            Manifests::gather(good)
        } else {
            // A form that can be taken counts wherever it stands, and an earlier one before what only stands in.
            let mut seen: HashSet<_> = good.clone().map(identity).collect();
            let mut missing = Vec::new();
            for resource in kept() {
                if seen.insert(identity(resource)) {
                    missing.push(resource);
                }
            }
            Manifests::gather(good.chain(missing))
        };
        let mut problems: Vec<_> =
            self.files.values().flat_map(|file| &file.problems).cloned().collect();
        problems.extend(across);
        problems.extend(manifests.check_root(root_namespace));
        problems.sort();
        (manifests, problems)
    }
}

/// By which resources are told apart.
fn identity(resource: &Resource) -> (Kind, &str, &str) {
    let meta = resource.meta();
    (resource.kind(), &meta.namespace, &meta.name)
}

#[derive(Default)]
struct Walk {
    files: Vec<(PathBuf, Stamp)>,
    /// What is there and cannot be looked at: a manifest, or a folder of them.
    failed: Vec<(PathBuf, io::Error)>,
}

impl Walk {
    /// Lists the YAML files below `folder`. Hidden names are left out: Kubernetes keeps the versions of a mounted
    /// ConfigMap in them and swaps a link, and editors keep their own files there.
    fn folder(&mut self, folder: &Path, above: &mut Vec<(u64, u64)>) -> io::Result<()> {
        let metadata = fs::metadata(folder)?;
        let identity = (metadata.dev(), metadata.ino());
        // A link to a folder above would never end.
        if above.contains(&identity) {
            return Ok(());
        }
        above.push(identity);
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                // A file may vanish while its folder is read. A link that leads nowhere is there: what it led to was
                // not withdrawn by whoever left the link.
                Err(_) if vanished(&path) => continue,
                Err(error) => {
                    self.failed.push((path, error));
                    continue;
                }
            };
            let yaml = path.extension().is_some_and(|kind| kind == "yaml" || kind == "yml");
            if metadata.is_dir() {
                self.folder(&path, above)?;
            } else if metadata.is_file() && yaml {
                let stamp = Stamp {
                    device: metadata.dev(),
                    inode: metadata.ino(),
                    bytes: metadata.len(),
                    modified: (metadata.mtime(), metadata.mtime_nsec()),
                };
                self.files.push((path, stamp));
            }
        }
        above.pop();
        Ok(())
    }
}

fn vanished(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

impl File {
    /// What of it counts, or did until it was changed.
    fn good(&self) -> impl Iterator<Item = &Resource> {
        self.found.resources.iter().chain(&self.kept)
    }

    fn failed(path: &Path, stamp: Option<Stamp>, line: usize, reason: String) -> Self {
        let place = Place { file: path.into(), line };
        let (object, field) = (String::new(), String::new());
        let problem = Problem { place, severity: Severity::Error, object, field, reason };
        // Whatever it held may still be there.
        let found = Found { unknown: true, ..Found::default() };
        Self {
            stamp,
            found,
            kept: Vec::new(),
            stand_ins: Vec::new(),
            problems: vec![problem],
            opaque: true,
        }
    }
}

/// Reads files on all cores: a hundred thousand pods take seconds on one.
fn read_all(stale: &[(PathBuf, Stamp)], known: &BTreeMap<PathBuf, File>) -> Vec<(PathBuf, File)> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = stale.len().div_ceil(threads).max(1);
    let read = |files: &[(PathBuf, Stamp)]| -> Vec<_> {
        files
            .iter()
            .filter_map(|(path, stamp)| {
                let earlier = known.get(path).map(|file| &file.found);
                Some((path.clone(), read_file(path, *stamp, earlier)?))
            })
            .collect()
    };
    thread::scope(|scope| {
        let workers: Vec<_> =
            stale.chunks(share).map(|files| scope.spawn(move || read(files))).collect();
        workers
            .into_iter()
            .flat_map(|worker| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    })
}

/// Reads one file; `None` if it vanished.
fn read_file(path: &Path, stamp: Stamp, earlier: Option<&Found>) -> Option<File> {
    let failed = |line, reason| Some(File::failed(path, Some(stamp), line, reason));
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return failed(1, format!("cannot be read: {error}")),
    };
    let text = match str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            return failed(line, "not UTF-8".to_owned());
        }
    };
    let mut problems = Vec::new();
    let found = document::read(&Arc::from(path), text, earlier, &mut problems);
    let (kept, stand_ins) = (Vec::new(), Vec::new());
    Some(File { stamp: Some(stamp), found, kept, stand_ins, problems, opaque: false })
}
