//! The certificates by which a peer was verified, named as revocation lists name them.
//!
//! In: what the peer presented, leaf first. Out: a [`PeerChain`]: the leaf and the intermediates that lead from it
//! towards a root. Whether one of them is revoked is for [`Revocations`](super::Revocations) to say.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use rustls_pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::PeerError;

/// What distinguishes a certificate from all others of its authority, in the words of a revocation list.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CertificateName {
    /// The issuer's name, in DER.
    issuer: Box<[u8]>,
    /// Without leading zeros.
    serial: Box<[u8]>,
}

impl CertificateName {
    pub(super) fn new(issuer: &[u8], serial: &[u8]) -> Self {
        Self { issuer: issuer.into(), serial: without_zeros(serial).into() }
    }

    pub(super) fn issuer(&self) -> &[u8] {
        &self.issuer
    }

    pub(super) fn serial(&self) -> &[u8] {
        &self.serial
    }
}

/// A sign byte is not part of the number.
pub(super) fn without_zeros(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}

impl fmt::Display for CertificateName {
    /// The serial number, in the hexadecimal of OpenSSL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.serial.is_empty() {
            return f.write_str("00");
        }
        self.serial.iter().try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}

impl fmt::Debug for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "serial {self}")
    }
}

/// A peer's certificates on the way from its leaf to a root, without the root. Never empty.
#[derive(Clone, Debug)]
pub struct PeerChain {
    certificates: Box<[CertificateDer<'static>]>,
    names: Box<[CertificateName]>,
    not_after: SystemTime,
}

impl PeerChain {
    /// Reads what a peer presented. What does not lead from its leaf towards a root is left out.
    ///
    /// # Errors
    /// [`PeerError`] when there is no leaf, or a certificate cannot be read.
    pub fn of(presented: &[CertificateDer<'_>]) -> Result<Self, PeerError> {
        let (leaf, others) = presented.split_first().ok_or(PeerError::NoCertificate)?;
        let mut others: Vec<_> =
            others.iter().map(|der| Ok((der, parse(der)?))).collect::<Result<_, PeerError>>()?;
        let (mut certificates, mut names) = (Vec::new(), Vec::new());
        let mut not_after = u64::MAX >> 16;
        let (mut der, mut parsed) = (leaf, parse(leaf)?);
        loop {
            let issuer = parsed.issuer().as_raw().to_vec();
            certificates.push(CertificateDer::from(der.to_vec()));
            let expiry = parsed.validity().not_after.timestamp();
            not_after = not_after.min(u64::try_from(expiry).unwrap_or(0));
            names.push(CertificateName::new(&issuer, parsed.raw_serial()));
            // Each is used once, so that two that name each other do not make an endless chain.
            let Some(next) =
                others.iter().position(|(_, other)| other.subject().as_raw() == issuer)
            else {
                break;
            };
            (der, parsed) = others.swap_remove(next);
        }
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(not_after);
        Ok(Self { certificates: certificates.into(), names: names.into(), not_after })
    }

    /// When the first of them expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The leaf's name.
    pub fn leaf(&self) -> &CertificateName {
        &self.names[0]
    }

    /// Each certificate with its name, the leaf first.
    pub(super) fn iter(
        &self,
    ) -> impl Iterator<Item = (&CertificateDer<'static>, &CertificateName)> {
        self.certificates.iter().zip(&self.names)
    }
}

/// Reads a certificate that nothing may follow.
pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PeerError> {
    let malformed = |reason: String| PeerError::Malformed { reason };
    let (rest, parsed) =
        X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
    if rest.is_empty() {
        Ok(parsed)
    } else {
        Err(malformed(format!("{} bytes follow the certificate", rest.len())))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    fn params(name: &str, serial: u64) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(serial.into());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    /// `leaf` issued by `middle` issued by `root`, and the middle one.
    fn chain() -> [CertificateDer<'static>; 2] {
        let [root_key, middle_key, key] = [(); 3].map(|()| KeyPair::generate().unwrap());
        let root = Issuer::new(params("root", 1), root_key);
        let middle = params("middle", 0x80).signed_by(&middle_key, &root).unwrap();
        let issuer = Issuer::new(params("middle", 0x80), middle_key);
        let leaf = params("leaf", 0x1234).signed_by(&key, &issuer).unwrap();
        [leaf.into(), middle.into()]
    }

    fn names(presented: &[CertificateDer<'_>]) -> String {
        match PeerChain::of(presented) {
            Ok(chain) => {
                chain.iter().map(|(_, name)| name.to_string()).collect::<Vec<_>>().join(" ")
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_chain_leads_from_the_leaf_to_the_root_in_whatever_order_it_was_sent() {
        let ([leaf, middle], [other_leaf, other_middle]) = (chain(), chain());
        assert_eq!(names(&[leaf.clone(), middle.clone()]), "1234 80");
        assert_eq!(names(&[leaf.clone(), other_leaf, middle]), "1234 80");
        assert_eq!(names(&[leaf]), "1234");
        assert_eq!(names(&[other_middle]), "80");
        assert_eq!(names(&[]), "the peer presented no certificate");
    }

    #[test]
    fn certificates_that_name_each_other_make_no_endless_chain() {
        let [_, middle] = chain();
        let itself = params("itself", 7).self_signed(&KeyPair::generate().unwrap()).unwrap();
        let itself = CertificateDer::from(itself);
        assert_eq!(names(&[itself.clone(), itself.clone(), middle]), "07 07");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(der in proptest::collection::vec(0_u8.., 0..300)) {
            let _ = PeerChain::of(&[CertificateDer::from(der)]);
        }
    }
}
