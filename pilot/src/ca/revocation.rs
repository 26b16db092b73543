//! Takes certificates back: by serial number, or all that were issued for a name.
//!
//! In: the folder of the root, what to revoke. Out: the file `ca-crl.pem` in it, a list signed by each root that the mesh
//! trusts; nodes get it as they get other files, and follow it (`CRL_PATH`). The file is made anew from `revoked`, which
//! has a line for each: serial number (hexadecimal), moment (seconds since 1970).

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use mesh::identity::{Authority, SignError, Spiffe, Validity};

use super::{
    files::{self, CERTIFICATE_FILE, OpenError},
    ledger::{Ledger, hex, seconds, unhex},
    plugged::Place,
    rotation,
};

pub(super) const LIST_FILE: &str = "ca-crl.pem";
const REVOKED_FILE: &str = "revoked";
/// A list is made anew with each revocation and not otherwise, so it must not seem overdue.
const LIST_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// What was done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Revoked {
    /// Certificates that were not on the list before.
    pub added: usize,
    /// The list's file.
    pub list: PathBuf,
}

/// Why nothing was revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// A file is wrong.
    #[error(transparent)]
    Files(#[from] OpenError),
    /// A line of the file of revoked certificates cannot be read: to pass over it would let a peer in again.
    #[error("line {line} of {} cannot be read", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// It is no serial number.
    #[error("`{text}` is no serial number: expected decimal digits, or hexadecimal ones after 0x")]
    Serial {
        /// The text.
        text: String,
    },
    /// No certificate to revoke is known.
    #[error("no certificate that is still valid was issued for {who}")]
    NothingIssued {
        /// For whom.
        who: Spiffe,
    },
    /// The list could not be signed.
    #[error("signing the list")]
    Sign(#[from] SignError),
}

/// Revokes certificates by their serial numbers, as `/config_dump` shows them, and all of `identities` that have not
/// ended. With neither it makes the list anew. `cacerts` is the folder of an authority that others have made, if there is one.
///
/// # Errors
/// [`RevokeError`]; then the list is as it was.
pub fn revoke(
    dir: &Path,
    cacerts: Option<&Path>,
    serials: &[String],
    identities: &[Spiffe],
    now: SystemTime,
) -> Result<Revoked, RevokeError> {
    // Says what is wrong with the folder before anything is written to it.
    let place = Place::of(dir, cacerts);
    place.load(now)?;
    // Of two at once, the second would put back what the first had read.
    let _locked = files::lock(dir)?;
    let mut wanted = Vec::new();
    for text in serials {
        wanted.push(number(text).ok_or_else(|| RevokeError::Serial { text: text.clone() })?);
    }
    let issued = Ledger::new(dir).entries()?;
    for who in identities {
        let of_who = issued.iter().filter(|e| e.name == who.as_str() && e.ends >= seconds(now));
        let before = wanted.len();
        wanted.extend(of_who.map(|entry| entry.serial.clone()));
        if wanted.len() == before {
            return Err(RevokeError::NothingIssued { who: who.clone() });
        }
    }
    let mut all = read_revoked(&dir.join(REVOKED_FILE))?;
    let before = all.len();
    for serial in wanted {
        if !all.iter().any(|(known, _)| *known == serial) {
            all.push((serial, seconds(now)));
        }
    }
    let text: String = all.iter().map(|(serial, at)| format!("{} {at}\n", hex(serial))).collect();
    files::replace(&dir.join(REVOKED_FILE), &text, 0o600)?;
    let list = dir.join(LIST_FILE);
    files::replace(&list, &lists(&place, &all, now)?, 0o644)?;
    Ok(Revoked { added: all.len() - before, list })
}

/// A list signed by each root. All bear all numbers: they are random, so that none is of two certificates.
fn lists(place: &Place, all: &[(Vec<u8>, u64)], now: SystemTime) -> Result<String, RevokeError> {
    let at = |at: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(at);
    let revoked: Vec<_> = all.iter().map(|(serial, when)| (serial.clone(), at(*when))).collect();
    let validity = Validity::starting(now, Duration::ZERO, LIST_LIFETIME);
    let mut lists = String::new();
    if place.is_plugged() {
        return Ok(place.load(now)?.revocation_list(&revoked, seconds(now), validity)?);
    }
    let dir = place.dir();
    let roots = files::must_read(&dir.join(CERTIFICATE_FILE))?;
    for key in rotation::keys(dir)? {
        // A root that was made a moment ago may not be among the certificates yet.
        if let Ok(authority) = Authority::load(&key, &roots) {
            lists += &authority.revocation_list(&revoked, seconds(now), validity)?;
        }
    }
    Ok(lists)
}

fn read_revoked(path: &Path) -> Result<Vec<(Vec<u8>, u64)>, RevokeError> {
    let text = files::read(path)?.unwrap_or_default();
    let lines = text.lines().enumerate().map(|(index, line)| {
        let entry =
            line.split_once(' ').and_then(|(serial, at)| Some((unhex(serial)?, at.parse().ok()?)));
        entry.ok_or_else(|| RevokeError::Line { path: path.into(), line: index + 1 })
    });
    lines.collect()
}

/// The bytes of a number, without leading zeros.
fn number(text: &str) -> Option<Vec<u8>> {
    let bytes = match text.strip_prefix("0x") {
        Some(digits) => {
            let digits: String = digits.chars().filter(|c| *c != ':').collect();
            unhex(&if digits.len().is_multiple_of(2) { digits } else { format!("0{digits}") })?
        }
        None => decimal(text)?,
    };
    let bytes: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
    // RFC 5280 §4.1.2.2: at most 20 bytes, and not zero.
    (!bytes.is_empty() && bytes.len() <= 20).then_some(bytes)
}

fn decimal(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || text.len() > 50 {
        return None;
    }
    let mut bytes: Vec<u8> = Vec::new();
    for digit in text.chars() {
        let mut carry = digit.to_digit(10)?;
        for byte in bytes.iter_mut().rev() {
            let value = u32::from(*byte) * 10 + carry;
            *byte = u8::try_from(value % 256).ok()?;
            carry = value / 256;
        }
        if carry > 0 {
            bytes.insert(0, u8::try_from(carry).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use mesh::identity::{Identities, IdentityConfig, PeerChain, Revocations};

    use super::*;
    use crate::ca::{CertificateAuthority, RotationStep, rotate, tests::Direct};

    fn name(account: &str) -> Spiffe {
        Spiffe::new("cluster.local", "shop", account).unwrap()
    }

    /// Whether the list in `dir` revokes the certificate that `identities` has for `account`.
    async fn is_revoked(dir: &Path, identities: &Identities, account: &str) -> bool {
        let credential = identities.credential(&name(account)).await.unwrap();
        let file = std::fs::read(dir.join(LIST_FILE)).unwrap();
        let chain = PeerChain::of(credential.chain()).unwrap();
        Revocations::parse(&file).unwrap().revoked(&chain, credential.roots()).is_some()
    }

    #[tokio::test]
    async fn a_name_or_a_number_is_revoked_under_every_root() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let ca = CertificateAuthority::open(dir, "cluster.local").unwrap();
        let issue = || {
            Identities::start(std::sync::Arc::new(Direct(ca.clone())), IdentityConfig::default())
        };
        let old = issue();
        for account in ["web", "cart", "pay"] {
            old.credential(&name(account)).await.unwrap();
        }
        let now = SystemTime::now();
        rotate(dir, RotationStep::Begin, "cluster.local", now).unwrap();
        rotate(dir, RotationStep::Switch, "cluster.local", now).unwrap();
        let new = issue();
        new.credential(&name("web")).await.unwrap();

        let cart = old.credential(&name("cart")).await.unwrap();
        let (_, cart) = x509_parser::parse_x509_certificate(&cart.chain()[0]).unwrap();
        let serial = cart.tbs_certificate.serial.to_string();
        let done = revoke(dir, None, &[serial], &[name("web")], now).unwrap();
        assert_eq!(done, Revoked { added: 3, list: dir.join(LIST_FILE) });
        assert!(is_revoked(dir, &old, "web").await && is_revoked(dir, &new, "web").await);
        assert!(is_revoked(dir, &old, "cart").await);
        assert!(!is_revoked(dir, &old, "pay").await);
        let again = revoke(dir, None, &[], &[name("web")], now).unwrap();
        assert_eq!(again.added, 0);
        assert!(is_revoked(dir, &old, "cart").await);
    }

    #[test]
    fn of_many_that_revoke_at_once_none_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        CertificateAuthority::open(dir, "cluster.local").unwrap();
        std::thread::scope(|scope| {
            for serial in 1..=16 {
                scope.spawn(move || {
                    revoke(dir, None, &[serial.to_string()], &[], SystemTime::now()).unwrap();
                });
            }
        });
        assert_eq!(read_revoked(&dir.join(REVOKED_FILE)).unwrap().len(), 16);
        let list = std::fs::read(dir.join(LIST_FILE)).unwrap();
        assert_eq!(Revocations::parse(&list).unwrap().count(), 16);
    }

    #[test]
    fn what_cannot_be_revoked_is_named() {
        let dir = tempfile::tempdir().unwrap();
        CertificateAuthority::open(dir.path(), "cluster.local").unwrap();
        let refusal = |serials: &[&str], who: &[Spiffe]| {
            let serials: Vec<String> = serials.iter().map(|s| (*s).to_owned()).collect();
            revoke(dir.path(), None, &serials, who, SystemTime::now()).unwrap_err().to_string()
        };
        assert_eq!(
            refusal(&[], &[name("web")]),
            "no certificate that is still valid was issued for spiffe://cluster.local/ns/shop/sa/web"
        );
        for text in ["", "0", "0x", "-1", "1f", "0xg1", "é"] {
            assert_eq!(
                refusal(&[text], &[]),
                format!(
                    "`{text}` is no serial number: expected decimal digits, or hexadecimal ones after 0x"
                )
            );
        }
        std::fs::write(dir.path().join(REVOKED_FILE), "0a 1\nhello\n").unwrap();
        assert!(refusal(&["1"], &[]).starts_with("line 2 of "));
        assert!(!dir.path().join(LIST_FILE).exists());
    }

    #[test]
    fn numbers_are_read_in_both_notations() {
        assert_eq!(number("256"), Some(vec![1, 0]));
        assert_eq!(number("0x1:00"), Some(vec![1, 0]));
        assert_eq!(number("65535"), number("0xffff"));
        assert_eq!(number("340282366920938463463374607431768211455"), Some(vec![0xff; 16]));
    }
}
