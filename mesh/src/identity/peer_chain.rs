//! The certificates by which a peer was verified, named as revocation lists name them.
//!
//! In: what the peer presented, leaf first. Out: a [`PeerChain`]: all of it, and when the first certificate of those that
//! signed the leaf expires. Names alone join nothing: anybody can make a certificate with the name of an authority.
//! Whether one is revoked is for [`Revocations`](super::Revocations) to say. Whether a root is at the end of them is the
//! handshake's to find out, which comes before; when roots change later, it is looked at again here.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls_pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::PeerError;

/// Certificates that a peer may present. Chains have two to four; each pair may cost a signature to be verified.
const MOST_CERTIFICATES: usize = 16;

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

/// Root certificates that a whole node shares.
pub(super) type Roots = Arc<[CertificateDer<'static>]>;

/// What a peer presented, the leaf first. Never empty.
#[derive(Debug)]
pub struct PeerChain {
    certificates: Box<[CertificateDer<'static>]>,
    names: Box<[CertificateName]>,
    not_after: SystemTime,
    /// The roots that were asked about last, and whether one of them is at its end.
    asked: Mutex<Option<(Roots, bool)>>,
}

impl PeerChain {
    /// Reads what a peer presented. What has no part in its leaf's signatures is kept too: which certificates the
    /// handshake went by is not told, and one that is revoked has no business in any of them.
    ///
    /// # Errors
    /// [`PeerError`] when there is no leaf, there are too many, or one cannot be read.
    pub fn of(presented: &[CertificateDer<'_>]) -> Result<Self, PeerError> {
        if presented.len() > MOST_CERTIFICATES {
            let found = presented.len();
            let reason = format!("{found} certificates, more than {MOST_CERTIFICATES}");
            return Err(PeerError::Malformed { reason });
        }
        let parsed: Vec<_> = presented.iter().map(parse).collect::<Result<_, _>>()?;
        let (leaf, others) = parsed.split_first().ok_or(PeerError::NoCertificate)?;
        let name = |one: &X509Certificate<'_>| {
            CertificateName::new(one.issuer().as_raw(), one.raw_serial())
        };
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(end_of_path(leaf, others));
        let certificates = presented.iter().map(|der| der.to_vec().into()).collect();
        let names = parsed.iter().map(name).collect();
        Ok(Self { certificates, names, not_after, asked: Mutex::default() })
    }

    /// The same, of a peer that a handshake has just verified while `roots` were the node's.
    pub(super) fn verified_under(self, roots: &Roots) -> Self {
        Self { asked: Mutex::new(Some((roots.clone(), true))), ..self }
    }

    /// Whether it ends in one of `roots`, as far as signatures tell: when they are valid and what they are for was the
    /// handshake's to judge. Costs signatures only where a root has gone since it was asked last.
    pub(super) fn ends_in(&self, roots: &Roots) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = match &*asked {
            Some((before, ends)) if Arc::ptr_eq(before, roots) => return *ends,
            Some((before, true)) if before.iter().all(|root| roots.contains(root)) => true,
            Some(_) | None => ends_in(&self.certificates, roots),
        };
        *asked = Some((roots.clone(), ends));
        ends
    }

    /// When the first expires of the leaf and those by which it is signed, where there are several the one that is good
    /// for longest. The root counts if it was presented.
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

/// When the first of the leaf and the certificates that signed it expires, in seconds since 1970.
fn end_of_path(leaf: &X509Certificate<'_>, others: &[X509Certificate<'_>]) -> u64 {
    let end = |one: &X509Certificate<'_>| {
        u64::try_from(one.validity().not_after.timestamp()).unwrap_or(0).min(u64::MAX >> 16)
    };
    let mut others: Vec<_> = others.iter().collect();
    // The one that is good for longest is asked first: where an authority's certificate was renewed, both have its key.
    others.sort_by_key(|other| std::cmp::Reverse(end(other)));
    let (mut last, mut first_end) = (leaf, end(leaf));
    // Each is used once, so that two that signed each other do not make an endless chain.
    while let Some(next) = others.iter().position(|other| is_signed_by(last, other)) {
        last = others.remove(next);
        first_end = first_end.min(end(last));
    }
    first_end
}

/// Whether signatures lead from the leaf, which is the first of `certificates`, to one of `roots`.
fn ends_in(certificates: &[CertificateDer<'_>], roots: &[CertificateDer<'_>]) -> bool {
    fn parsed<'a>(all: &'a [CertificateDer<'_>]) -> Vec<X509Certificate<'a>> {
        all.iter().filter_map(|der| parse(der).ok()).collect()
    }
    let roots = parsed(roots);
    let mut others = parsed(certificates).into_iter();
    let mut reached: Vec<_> = others.next().into_iter().collect();
    let mut others: Vec<_> = others.collect();
    while let Some(last) = reached.pop() {
        if roots.iter().any(|root| is_signed_by(&last, root)) {
            return true;
        }
        let (signers, left) = others.into_iter().partition(|other| is_signed_by(&last, other));
        others = left;
        reached.extend::<Vec<_>>(signers);
    }
    false
}

/// Whether `issuer` issued the certificate, by name and by key.
pub(super) fn is_signed_by(
    certificate: &X509Certificate<'_>,
    issuer: &X509Certificate<'_>,
) -> bool {
    issuer.subject().as_raw() == certificate.issuer().as_raw()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
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

    /// The end of what is valid until a day of January 2050.
    fn until(mut params: CertificateParams, day: u8) -> CertificateParams {
        params.not_after = rcgen::date_time_ymd(2050, 1, day);
        params
    }

    fn made(params: &CertificateParams, issuer: &Issuer<'_, KeyPair>) -> CertificateDer<'static> {
        params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().into()
    }

    /// A root, an authority under it with certificates that end on the 20th and the 10th, a leaf of that authority that
    /// ends on the 30th, and a certificate with the authority's name, of another, that ends on the 1st.
    struct Mesh {
        leaf: CertificateDer<'static>,
        middle: CertificateDer<'static>,
        earlier: CertificateDer<'static>,
        decoy: CertificateDer<'static>,
    }

    impl Mesh {
        fn new() -> Self {
            let [root_key, key] = [(); 2].map(|()| KeyPair::generate().unwrap());
            let root = Issuer::new(params("root", 1), root_key);
            let [middle, earlier] = [(0x80, 20), (0x81, 10)].map(|(serial, day)| {
                until(params("middle", serial), day).signed_by(&key, &root).unwrap().into()
            });
            let issuer = Issuer::new(params("middle", 0x80), key);
            let leaf = made(&until(params("leaf", 0x1234), 30), &issuer);
            let nobody = Issuer::new(params("nobody", 6), KeyPair::generate().unwrap());
            let decoy = made(&until(params("middle", 0x66), 1), &nobody);
            Self { leaf, middle, earlier, decoy }
        }
    }

    /// Serial numbers and the day of January on which the first of the path expires.
    fn read(presented: &[&CertificateDer<'_>]) -> String {
        let presented: Vec<_> = presented.iter().map(|der| der.as_ref().into()).collect();
        match PeerChain::of(&presented) {
            Ok(chain) => {
                let names = chain.iter().map(|(_, name)| name.to_string());
                let january = SystemTime::from(rcgen::date_time_ymd(2050, 1, 1));
                let day = chain.not_after().duration_since(january).unwrap().as_secs() / 86_400 + 1;
                format!("{} until {day}", names.collect::<Vec<_>>().join(" "))
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn all_that_was_presented_is_named_and_the_signed_path_says_how_long_it_is_good() {
        let Mesh { leaf, middle, earlier, decoy } = &Mesh::new();
        assert_eq!(read(&[leaf]), "1234 until 30");
        assert_eq!(read(&[leaf, middle]), "1234 80 until 20");
        assert_eq!(read(&[leaf, decoy, middle]), "1234 66 80 until 20");
        assert_eq!(read(&[leaf, middle, decoy]), "1234 80 66 until 20");
        assert_eq!(read(&[leaf, decoy]), "1234 66 until 30");
        assert_eq!(read(&[leaf, earlier]), "1234 81 until 10");
        assert_eq!(read(&[leaf, earlier, middle]), "1234 81 80 until 20");
        assert_eq!(read(&[]), "the peer presented no certificate");
    }

    #[test]
    fn certificates_that_signed_each_other_make_no_endless_chain() {
        let own = KeyPair::generate().unwrap();
        let itself = until(params("itself", 7), 5).self_signed(&own).unwrap().into();
        assert_eq!(read(&[&itself, &itself, &itself]), "07 07 07 until 5");
    }

    #[test]
    fn more_certificates_than_any_chain_has_are_refused() {
        let Mesh { leaf, .. } = &Mesh::new();
        assert!(read(&[leaf; 17]).ends_with("17 certificates, more than 16"));
        assert!(read(&[leaf; 16]).ends_with("until 30"));
    }

    #[test]
    fn a_chain_ends_in_the_root_that_signed_it_whatever_else_there_is() {
        let [root_key, other_key, key] = [(); 3].map(|()| KeyPair::generate().unwrap());
        let self_signed = |key: &KeyPair| -> CertificateDer<'static> {
            params("root", 1).self_signed(key).unwrap().into()
        };
        // Of one name, as all roots of Istio's are.
        let (root, other) = (self_signed(&root_key), self_signed(&other_key));
        let signer = Issuer::new(params("root", 1), root_key);
        let middle: CertificateDer<'static> =
            params("middle", 2).signed_by(&key, &signer).unwrap().into();
        let leaf = made(&params("leaf", 3), &Issuer::new(params("middle", 2), key));
        let Mesh { decoy, .. } = Mesh::new();
        let roots =
            |all: &[&CertificateDer<'static>]| -> Roots { all.iter().copied().cloned().collect() };
        for (presented, trusted, expected) in [
            (vec![&leaf, &middle], roots(&[&other, &root]), true),
            (vec![&leaf, &decoy, &middle], roots(&[&root]), true),
            (vec![&leaf, &middle, &root], roots(&[&root]), true),
            (vec![&leaf, &middle], roots(&[&middle]), true),
            (vec![&leaf, &middle, &root], roots(&[&other]), false),
            (vec![&leaf], roots(&[&root]), false),
            (vec![&leaf, &middle], roots(&[]), false),
        ] {
            let presented: Vec<_> = presented.into_iter().cloned().collect();
            let chain = PeerChain::of(&presented).unwrap();
            assert_eq!(chain.ends_in(&trusted), expected);
            // What is remembered is no other answer than what is found.
            assert_eq!(chain.ends_in(&trusted), expected);
            let more = roots(&[&other, &root, &middle]);
            assert_eq!(chain.ends_in(&more), ends_in(&presented, &more));
            assert_eq!(chain.ends_in(&trusted), expected);
        }
    }

    #[test]
    fn what_a_handshake_verified_is_not_doubted_until_a_root_goes() {
        let roots: Roots = [Mesh::new().decoy].into();
        let chain = PeerChain::of(&[Mesh::new().leaf]).unwrap().verified_under(&roots);
        assert!(chain.ends_in(&roots));
        let more: Roots = roots.iter().cloned().chain([Mesh::new().decoy]).collect();
        assert!(chain.ends_in(&more));
        assert!(!chain.ends_in(&more[1..].into()));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(der in proptest::collection::vec(0_u8.., 0..300)) {
            let _ = PeerChain::of(&[CertificateDer::from(der)]);
        }
    }
}
