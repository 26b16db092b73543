//! What was issued, so that it can be revoked by the name it was issued for.
//!
//! In: chains as they are signed. Out: a line for each in the file `issued`: serial number (hexadecimal), end (seconds
//! since 1970), name. A certificate is given out although its line cannot be written, since a full disk must not stop the
//! mesh; revoking by name then misses it, which is logged.

use std::{
    fs,
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use mesh::identity::Spiffe;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::files::{self, OpenError};

const FILE: &str = "issued";

/// One certificate that was issued.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    /// Without leading zeros.
    pub(super) serial: Vec<u8>,
    /// Seconds since 1970.
    pub(super) ends: u64,
    pub(super) name: String,
}

pub(super) struct Ledger {
    path: PathBuf,
    /// One writer at a time: an entry between the reading and the replacing of the file would be lost.
    writing: Mutex<()>,
}

impl Ledger {
    pub(super) fn new(dir: &Path) -> Self {
        Self { path: dir.join(FILE), writing: Mutex::new(()) }
    }

    /// Enters the leaf of `chain`.
    pub(super) fn enter(&self, chain: &[String], who: &Spiffe) {
        let Some(entry) = chain.first().and_then(|leaf| Entry::of(leaf, who)) else {
            return tracing::error!(identity = %who, "a certificate was issued that cannot be read");
        };
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.append(&entry) {
            tracing::error!(file = %self.path.display(), %error, identity = %who, "an issued certificate is not entered: revoking by name will miss it");
        }
    }

    fn append(&self, entry: &Entry) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).mode(0o600).open(&self.path)?;
        let former = file.metadata()?.len();
        // The end of a line that was not written whole must not become the beginning of this one.
        let begin = if ends_a_line(&mut file, former)? { "" } else { "\n" };
        // One write, so that a line is whole even if the process ends.
        let written = file.write_all(format!("{begin}{}\n", entry.line()).as_bytes());
        if written.is_err() {
            // Half a line could be read as a whole one, of a shorter name. Should this fail too, the next entry still
            // begins a line.
            let _ = file.set_len(former);
        }
        written
    }

    /// All entries. A line that cannot be read is passed over.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, OpenError> {
        let text = files::read(&self.path)?.unwrap_or_default();
        Ok(text.lines().filter_map(Entry::read).collect())
    }

    /// Takes out what ended more than a day before `now`.
    pub(super) fn forget_ended(&self, now: SystemTime) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let day_ago = seconds(now).saturating_sub(24 * 3600);
        let result = self.entries().and_then(|entries| {
            let kept = entries.iter().filter(|entry| entry.ends > day_ago);
            let text: String = kept.map(|entry| entry.line() + "\n").collect();
            files::replace(&self.path, &text, 0o600)
        });
        if let Err(error) = result {
            tracing::warn!(%error, "ended certificates stay entered");
        }
    }
}

/// Whether a file of this length is empty or has whole lines only.
fn ends_a_line(file: &mut fs::File, length: u64) -> io::Result<bool> {
    let Some(last) = length.checked_sub(1) else { return Ok(true) };
    let mut byte = [0];
    file.seek(io::SeekFrom::Start(last))?;
    file.read_exact(&mut byte)?;
    Ok(byte == *b"\n")
}

impl Entry {
    fn of(leaf_pem: &str, who: &Spiffe) -> Option<Self> {
        let der = CertificateDer::from_pem_slice(leaf_pem.as_bytes()).ok()?;
        let (_, leaf) = X509Certificate::from_der(&der).ok()?;
        let serial = leaf.raw_serial().iter().copied().skip_while(|byte| *byte == 0).collect();
        let ends = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0);
        Some(Self { serial, ends, name: who.to_string() })
    }

    fn line(&self) -> String {
        format!("{} {} {}", hex(&self.serial), self.ends, self.name)
    }

    fn read(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (serial, ends, name) = (words.next()?, words.next()?, words.next()?);
        Some(Self { serial: unhex(serial)?, ends: ends.parse().ok()?, name: name.to_owned() })
    }
}

/// Seconds since 1970.
pub(super) fn seconds(moment: SystemTime) -> u64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes from an even number of hexadecimal digits.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) || text.is_empty() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(ends: u64) -> Entry {
        Entry { serial: vec![0x0a, 0xff], ends, name: "spiffe://cluster.local/ns/a/sa/b".into() }
    }

    #[test]
    fn a_line_is_read_as_it_was_written_and_damaged_ones_are_passed_over() {
        assert_eq!(entry(7).line(), "0aff 7 spiffe://cluster.local/ns/a/sa/b");
        assert_eq!(Entry::read(&entry(7).line()), Some(entry(7)));
        for damaged in ["", "0aff", "0af 7 x", "zz 7 x", "0aff seven x", "é1 7 x"] {
            assert_eq!(Entry::read(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn an_entry_after_half_a_line_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(dir.path());
        ledger.append(&entry(1)).unwrap();
        let whole = fs::read_to_string(&ledger.path).unwrap();
        fs::write(&ledger.path, format!("{whole}0aff 2")).unwrap();
        ledger.append(&entry(3)).unwrap();
        ledger.append(&entry(4)).unwrap();
        assert_eq!(ledger.entries().unwrap(), [entry(1), entry(3), entry(4)]);
    }

    #[test]
    fn what_has_ended_is_forgotten_a_day_later() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(dir.path());
        let now = SystemTime::now();
        let [ended, recent] = [2 * 24 * 3600, 3600].map(|ago| entry(seconds(now) - ago));
        fs::write(&ledger.path, format!("{}\n{}\n", ended.line(), recent.line())).unwrap();
        ledger.forget_ended(now);
        assert_eq!(ledger.entries().unwrap(), [recent]);
    }
}
