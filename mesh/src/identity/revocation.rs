//! Certificates that their authorities have taken back: revocation lists (RFC 5280 §5).
//!
//! In: the bytes of a file, PEM (any number of lists) or DER (one). Out: [`Revocations`], which say of a chain whether
//! one of its certificates is revoked, or the [`RevocationError`] that says which list is wrong. A certificate of whose
//! authority there is no list is not revoked. A list that is older than it says it should be stays in force: it revokes
//! no fewer certificates than the next one would.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use x509_parser::{
    certificate::X509Certificate,
    extensions::ParsedExtension,
    prelude::{FromDer, X509Extension},
    revocation_list::CertificateRevocationList,
    x509::SubjectPublicKeyInfo,
};

use super::{
    CertificateName, PeerChain,
    peer::system_time,
    peer_chain::{is_signed_by, parse, without_zeros},
};

/// Keys whose signature under a list is remembered. There are as many as authorities; more are somebody's attempts.
const REMEMBERED_KEYS: usize = 64;

/// What is wrong with a file of revocation lists.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RevocationError {
    /// Neither PEM nor DER.
    #[error("it holds no revocation list in PEM or DER: {reason}")]
    Form {
        /// What the parsers found.
        reason: String,
    },
    /// A list that cannot be read.
    #[error("revocation list {index} cannot be read: {reason}")]
    Malformed {
        /// Counted from 0.
        index: usize,
        /// What the parser found.
        reason: String,
    },
    /// A list that means something else than "all that this issuer has revoked".
    #[error("revocation list {index} cannot be used: {reason}")]
    Unsupported {
        /// Counted from 0.
        index: usize,
        /// Which of its extensions says so.
        reason: String,
    },
}

/// All lists of one file.
#[derive(Debug, Default)]
pub struct Revocations {
    lists: Vec<List>,
    /// Those of each issuer: while one root takes the place of another, two have the same name.
    by_issuer: HashMap<Box<[u8]>, Vec<usize>>,
}

#[derive(Debug)]
struct List {
    serials: HashSet<Box<[u8]>>,
    /// The issuer's key identifier, if the list has it.
    key_id: Option<Box<[u8]>>,
    next_update: Option<SystemTime>,
    der: CertificateRevocationListDer<'static>,
    /// Whether the list is signed by a key. Looked at only for certificates that are on the list by name and number.
    signed_by: Mutex<HashMap<Box<[u8]>, bool>>,
}

impl Revocations {
    /// Reads a file.
    ///
    /// # Errors
    /// [`RevocationError`]; of several lists all must be good, since who leaves one out leaves revoked peers in.
    pub fn parse(file: &[u8]) -> Result<Self, RevocationError> {
        let mut all = Self::default();
        for (index, der) in split(file)?.into_iter().enumerate() {
            let (issuer, list) = List::parse(index, der)?;
            all.by_issuer.entry(issuer).or_default().push(all.lists.len());
            all.lists.push(list);
        }
        Ok(all)
    }

    /// How many certificates are revoked.
    pub fn count(&self) -> usize {
        self.lists.iter().map(|list| list.serials.len()).sum()
    }

    /// When the first list is to be replaced by a newer one, if any says so.
    pub fn next_update(&self) -> Option<SystemTime> {
        self.lists.iter().filter_map(|list| list.next_update).min()
    }

    /// The first certificate of all in `chain` that is revoked. `roots` are those that the chain may end in.
    pub fn revoked<'a>(
        &self,
        chain: &'a PeerChain,
        roots: &[CertificateDer<'_>],
    ) -> Option<&'a CertificateName> {
        if self.lists.is_empty() {
            return None;
        }
        let on_list = |(der, name): &(&CertificateDer<'_>, &CertificateName)| {
            let of_issuer = self.by_issuer.get(name.issuer()).into_iter().flatten();
            of_issuer
                .map(|at| &self.lists[*at])
                .filter(|list| list.serials.contains(name.serial()))
                .any(|list| list.is_by_issuer_of(der, chain, roots))
        };
        chain.iter().find(on_list).map(|(_, name)| name)
    }
}

impl List {
    fn parse(
        index: usize,
        der: CertificateRevocationListDer<'static>,
    ) -> Result<(Box<[u8]>, Self), RevocationError> {
        let malformed = |reason: String| RevocationError::Malformed { index, reason };
        let (rest, list) = CertificateRevocationList::from_der(&der)
            .map_err(|error| malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(malformed(format!("{} bytes follow it", rest.len())));
        }
        let unsupported = |reason| RevocationError::Unsupported { index, reason };
        for extension in list.extensions() {
            check_extension(extension).map_err(unsupported)?;
        }
        for entry in list.iter_revoked_certificates() {
            if let Some(unknown) = entry.extensions().iter().find(|e| e.critical && !is_plain(e)) {
                return Err(unsupported(format!("an entry has the extension {}", unknown.oid)));
            }
        }
        let entries = list.iter_revoked_certificates();
        let serials = entries.map(|entry| without_zeros(entry.raw_serial()).into()).collect();
        let issuer = list.issuer().as_raw().into();
        let (key_id, next_update) =
            (key_id_of(list.extensions()), list.next_update().map(system_time));
        Ok((issuer, Self { serials, key_id, next_update, signed_by: Mutex::default(), der }))
    }

    /// Whether the key that signed this list is the one that signed the certificate: names alone are not enough, since
    /// all of Istio's roots have the same.
    fn is_by_issuer_of(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &PeerChain,
        roots: &[CertificateDer<'_>],
    ) -> bool {
        let Ok(certificate) = parse(certificate) else { return false };
        let issuer = key_id_of(certificate.extensions());
        if let (Some(own), Some(issuer)) = (&self.key_id, &issuer)
            && own != issuer
        {
            return false;
        }
        let mut candidates = chain.iter().map(|(der, _)| &**der).chain(roots.iter().map(|r| &**r));
        candidates.any(|candidate| {
            let Ok((_, candidate)) = X509Certificate::from_der(candidate) else { return false };
            is_signed_by(&certificate, &candidate) && self.is_signed_by(candidate.public_key())
        })
    }

    fn is_signed_by(&self, key: &SubjectPublicKeyInfo<'_>) -> bool {
        let mut known = self.signed_by.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(key.raw) {
            return *known;
        }
        let signed = CertificateRevocationList::from_der(&self.der)
            .is_ok_and(|(_, list)| list.verify_signature(key).is_ok());
        if known.len() >= REMEMBERED_KEYS {
            known.clear();
        }
        known.insert(key.raw.into(), signed);
        signed
    }
}

fn split(file: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, RevocationError> {
    // DER begins with a SEQUENCE, PEM with text.
    if file.first() == Some(&0x30) {
        return Ok(vec![CertificateRevocationListDer::from(file.to_vec())]);
    }
    let form = |reason: String| RevocationError::Form { reason };
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(file)
        .collect::<Result<_, _>>()
        .map_err(|error| form(error.to_string()))?;
    if lists.is_empty() { Err(form("no list in it".into())) } else { Ok(lists) }
}

/// A list that is part of another, or speaks for other issuers, must not pass for a whole one.
fn check_extension(extension: &X509Extension<'_>) -> Result<(), String> {
    if let ParsedExtension::IssuingDistributionPoint(point) = extension.parsed_extension() {
        return if point.indirect_crl { Err("it is an indirect one".into()) } else { Ok(()) };
    }
    if extension.critical && !is_plain(extension) {
        return Err(format!("it has the extension {}", extension.oid));
    }
    Ok(())
}

/// Extensions that change nothing about which certificates are revoked.
fn is_plain(extension: &X509Extension<'_>) -> bool {
    matches!(
        extension.parsed_extension(),
        ParsedExtension::AuthorityKeyIdentifier(_)
            | ParsedExtension::CRLNumber(_)
            | ParsedExtension::ReasonCode(_)
            | ParsedExtension::InvalidityDate(_)
    )
}

fn key_id_of(extensions: &[X509Extension<'_>]) -> Option<Box<[u8]>> {
    extensions.iter().find_map(|extension| {
        if let ParsedExtension::AuthorityKeyIdentifier(id) = extension.parsed_extension() {
            id.key_identifier.as_ref().map(|id| id.0.into())
        } else {
            None
        }
    })
}

#[cfg(test)]
#[path = "revocation_tests.rs"]
mod tests;
