//! A certificate authority without files, clock or network: a key, its certificate, and what they sign.
//!
//! In: signing requests and the names and validity that somebody has authorised. Out: chains as the certificate
//! service sends them. Who may have which name is not decided here: the names in a request are ignored.

use std::{
    iter,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use base64::Engine as _;
use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, RevokedCertParams, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, pem::PemObject,
};
use x509_parser::{
    certificate::X509Certificate, certification_request::X509CertificationRequest,
    prelude::FromDer, public_key::PublicKey,
};

use super::{Spiffe, peer::system_time};

/// RSA keys below this are refused: no peer accepts them.
const MIN_RSA_BITS: usize = 2048;

/// From when to when a certificate is valid. X.509 counts whole seconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    /// The first moment.
    pub not_before: SystemTime,
    /// The last moment.
    pub not_after: SystemTime,
}

impl Validity {
    /// `lifetime` from `now`, and `back` into the past for clocks that lag behind ours.
    pub fn starting(now: SystemTime, back: Duration, lifetime: Duration) -> Self {
        let not_before = now.checked_sub(back).unwrap_or(SystemTime::UNIX_EPOCH);
        let not_after = now.checked_add(lifetime).unwrap_or(now);
        Self { not_before, not_after }
    }
}

/// Why an authority could not be made or loaded.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The library could not make the key or the certificate.
    #[error("making the root key and certificate")]
    Make {
        /// What the library says.
        source: rcgen::Error,
    },
    /// The key is not a private key in PEM that we can sign with.
    #[error("the root key is not a usable PKCS#8 key in PEM")]
    Key {
        /// What the library says.
        source: rcgen::Error,
    },
    /// The certificate is not X.509 in PEM.
    #[error("the root certificate cannot be read: {reason}")]
    Certificate {
        /// What the parser found.
        reason: String,
    },
    /// The certificate may not sign others.
    #[error("the root certificate is not a certificate authority's (basicConstraints lacks CA)")]
    NotAnAuthority,
    /// No certificate is for the key.
    #[error("the root certificate is for another key than the root key")]
    KeyMismatch,
}

/// Why a request was not signed. All but `Sign` are the requester's fault.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Not PEM, or not a signing request.
    #[error("the certificate signing request cannot be read: {reason}")]
    Malformed {
        /// What the parser found.
        reason: String,
    },
    /// Its signature is not by the key in it, so the requester may not have that key.
    #[error("the certificate signing request is not signed by its own key")]
    Signature,
    /// A kind or size of key that peers would not accept.
    #[error(
        "the key in the request is {found}; ECDSA P-256 or P-384, or RSA from 2048 bits, is accepted"
    )]
    Key {
        /// What it is.
        found: String,
    },
    /// A name for the server certificate is no DNS name.
    #[error("`{name}` cannot stand in a certificate")]
    Name {
        /// The name.
        name: String,
    },
    /// The authority's own certificate ends before the requested validity begins.
    #[error("the root certificate has expired")]
    RootExpired,
    /// The library could not sign.
    #[error("signing the certificate")]
    Sign {
        /// What the library says.
        source: rcgen::Error,
    },
}

/// A key that signs, its certificate, and the way from that to the roots.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Our own certificate first, then the one that signed it, up to the one that a root has signed. None if we are the
    /// root.
    intermediates: Vec<CertificateDer<'static>>,
    /// The last element of every chain: our own root first, and others that are trusted beside it.
    roots_pem: String,
    root_not_after: SystemTime,
}

/// A server certificate with its key, for a listener of our own.
pub struct ServerCertificate {
    /// The leaf, and what lies between it and the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl Authority {
    /// Makes a new ECDSA P-256 key and a self-signed root for it; `organization` becomes its subject.
    ///
    /// # Errors
    /// [`AuthorityError::Make`] when the random source or the library fails.
    pub fn create(organization: &str, validity: Validity) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|source| AuthorityError::Make { source })?;
        Self::self_signed(key, organization, validity)
    }

    /// Makes a self-signed root for a key that [`Authority::key_pem`] gave.
    ///
    /// # Errors
    /// [`AuthorityError::Key`] when it is no such key; otherwise as [`Authority::create`].
    pub fn certify(
        key_pem: &str,
        organization: &str,
        validity: Validity,
    ) -> Result<Self, AuthorityError> {
        Self::self_signed(read_key(key_pem)?, organization, validity)
    }

    /// Loads a key and its certificate. More certificates may stand beside it: roots to trust besides, as while one root
    /// takes the place of another. The one that is for the key signs.
    ///
    /// # Errors
    /// [`AuthorityError`] says which of the two is wrong, or that they do not belong together.
    pub fn load(key_pem: &str, roots_pem: &str) -> Result<Self, AuthorityError> {
        let unreadable = |reason: String| AuthorityError::Certificate { reason };
        let key = read_key(key_pem)?;
        let roots: Vec<_> = CertificateDer::pem_slice_iter(roots_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| unreadable(error.to_string()))?;
        if roots.is_empty() {
            return Err(unreadable("no certificate in it".into()));
        }
        let mut own = None;
        for root in &roots {
            let (_, parsed) =
                X509Certificate::from_der(root).map_err(|error| unreadable(error.to_string()))?;
            if own.is_none() && *parsed.public_key().raw == *key.subject_public_key_info() {
                own = Some((root, parsed));
            }
        }
        let (own, root) = own.ok_or(AuthorityError::KeyMismatch)?;
        if !root.is_ca() {
            return Err(AuthorityError::NotAnAuthority);
        }
        let root_not_after = system_time(root.validity().not_after);
        let issuer =
            Issuer::from_ca_cert_der(own, key).map_err(|error| unreadable(error.to_string()))?;
        Ok(Self::between(issuer, &[], roots_pem, root_not_after))
    }

    /// One whose certificate is the first of `intermediates`, if there are any, and good until `not_after`.
    pub(super) fn between(
        issuer: Issuer<'static, KeyPair>,
        intermediates: &[CertificateDer<'static>],
        roots_pem: &str,
        not_after: SystemTime,
    ) -> Self {
        Self {
            issuer,
            intermediates: intermediates.to_vec(),
            roots_pem: roots_pem.into(),
            root_not_after: not_after,
        }
    }

    /// The certificates of `roots_pem` that are for other keys.
    ///
    /// # Errors
    /// [`AuthorityError`] says which of the two cannot be read.
    pub fn without(key_pem: &str, roots_pem: &str) -> Result<String, AuthorityError> {
        let unreadable = |reason: String| AuthorityError::Certificate { reason };
        let key = read_key(key_pem)?;
        let mut rest = String::new();
        // As text, so that what people wrote between the certificates stays.
        for block in roots_pem.split_inclusive("-----END CERTIFICATE-----") {
            if block.trim().is_empty() {
                continue;
            }
            let root = CertificateDer::from_pem_slice(block.as_bytes())
                .map_err(|error| unreadable(error.to_string()))?;
            let (_, parsed) =
                X509Certificate::from_der(&root).map_err(|error| unreadable(error.to_string()))?;
            if *parsed.public_key().raw != *key.subject_public_key_info() {
                rest += block.trim();
                rest.push('\n');
            }
        }
        Ok(rest)
    }

    /// Adds roots that are trusted besides, in PEM.
    pub fn trust(&mut self, roots_pem: &str) {
        if !self.roots_pem.ends_with('\n') {
            self.roots_pem.push('\n');
        }
        self.roots_pem.push_str(roots_pem);
    }

    /// The root certificate in PEM, and those that are trusted besides.
    pub fn roots_pem(&self) -> &str {
        &self.roots_pem
    }

    /// When our certificate's validity ends, or that of one it depends on.
    pub fn root_not_after(&self) -> SystemTime {
        self.root_not_after
    }

    /// The root key, PKCS#8 in PEM: for storing it where nobody else can read it.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Signs a workload's certificate for the key of `csr_pem`, usable on both sides of a tunnel.
    ///
    /// The validity ends with the root's at the latest. The chain is leaf, those between it and the roots, roots.
    ///
    /// # Errors
    /// [`SignError`] says what is wrong with the request.
    pub fn sign(
        &self,
        csr_pem: &str,
        who: &Spiffe,
        validity: Validity,
    ) -> Result<Vec<String>, SignError> {
        let key = requested_key(csr_pem)?;
        let uri = who.as_str().try_into().map_err(|source| SignError::Sign { source })?;
        let mut params = self.leaf(vec![SanType::URI(uri)], validity)?;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf =
            params.signed_by(&key, &self.issuer).map_err(|source| SignError::Sign { source })?;
        let between = self.intermediates.iter().map(|one| pem(one));
        Ok(iter::once(leaf.pem())
            .chain(between)
            .chain(iter::once(self.roots_pem.clone()))
            .collect())
    }

    /// Makes a key and a certificate for a server known by DNS names and addresses.
    ///
    /// # Errors
    /// [`SignError::Name`] for what is neither; [`SignError::Sign`] when the library fails.
    pub fn server_certificate(
        &self,
        names: &[String],
        validity: Validity,
    ) -> Result<ServerCertificate, SignError> {
        let sign = |source| SignError::Sign { source };
        let names = names.iter().map(|name| server_name(name)).collect::<Result<_, _>>()?;
        let mut params = self.leaf(names, validity)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(sign)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(sign)?;
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.intermediates.iter().cloned());
        Ok(ServerCertificate { chain, key: key.into() })
    }

    /// Signs the list of the certificates that are taken back, by serial number, each with the moment that happened. In
    /// PEM.
    ///
    /// # Errors
    /// [`SignError::Sign`] when the library fails.
    pub fn revocation_list(
        &self,
        revoked: &[(Vec<u8>, SystemTime)],
        number: u64,
        validity: Validity,
    ) -> Result<String, SignError> {
        let revoked = revoked.iter().map(|(serial, at)| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: (*at).into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: validity.not_before.into(),
            next_update: validity.not_after.into(),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params
            .signed_by(&self.issuer)
            .and_then(|list| list.pem())
            .map_err(|source| SignError::Sign { source })
    }

    fn self_signed(
        key: KeyPair,
        organization: &str,
        validity: Validity,
    ) -> Result<Self, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params.serial_number = Some(serial());
        params.not_before = validity.not_before.into();
        params.not_after = validity.not_after.into();
        let root = params.self_signed(&key).map_err(|source| AuthorityError::Make { source })?;
        Ok(Self {
            roots_pem: root.pem(),
            issuer: Issuer::new(params, key),
            intermediates: Vec::new(),
            root_not_after: validity.not_after,
        })
    }

    fn leaf(
        &self,
        names: Vec<SanType>,
        validity: Validity,
    ) -> Result<CertificateParams, SignError> {
        if self.root_not_after <= validity.not_before {
            return Err(SignError::RootExpired);
        }
        let mut params = CertificateParams::default();
        // An empty subject makes the alternative names critical (RFC 5280 §4.2.1.6): nobody may overlook them.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial());
        params.not_before = validity.not_before.into();
        params.not_after = validity.not_after.min(self.root_not_after).into();
        Ok(params)
    }
}

pub(super) fn read_key(key_pem: &str) -> Result<KeyPair, AuthorityError> {
    KeyPair::from_pem(key_pem).map_err(|source| AuthorityError::Key { source })
}

/// A certificate as text (RFC 7468).
fn pem(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let encoded = base64::engine::general_purpose::STANDARD.encode(der);
    let mut rest = &*encoded;
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text += line;
        text.push('\n');
        rest = after;
    }
    text + "-----END CERTIFICATE-----\n"
}

/// The key of a signing request that is signed by that very key.
fn requested_key(csr_pem: &str) -> Result<SubjectPublicKeyInfo, SignError> {
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes())
        .map_err(|error| SignError::Malformed { reason: error.to_string() })?;
    requested_key_of(&der)
}

fn requested_key_of(der: &[u8]) -> Result<SubjectPublicKeyInfo, SignError> {
    let malformed = |reason: String| SignError::Malformed { reason };
    let (rest, csr) =
        X509CertificationRequest::from_der(der).map_err(|error| malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed(format!("{} bytes follow the request", rest.len())));
    }
    let spki = &csr.certification_request_info.subject_pki;
    let refused = |found: String| SignError::Key { found };
    match spki.parsed().map_err(|error| malformed(error.to_string()))? {
        PublicKey::EC(point) if matches!(point.key_size(), 256 | 384) => {}
        PublicKey::EC(point) => return Err(refused(format!("ECDSA of {} bits", point.key_size()))),
        PublicKey::RSA(rsa) if rsa.key_size() >= MIN_RSA_BITS => {}
        PublicKey::RSA(rsa) => return Err(refused(format!("RSA of {} bits", rsa.key_size()))),
        PublicKey::DSA(_) => return Err(refused("DSA".into())),
        PublicKey::GostR3410(_) | PublicKey::GostR3410_2012(_) => {
            return Err(refused("GOST R 34.10".into()));
        }
        PublicKey::Unknown(_) => {
            return Err(refused(format!("of algorithm {}", spki.algorithm.algorithm)));
        }
    }
    csr.verify_signature().map_err(|_| SignError::Signature)?;
    SubjectPublicKeyInfo::from_der(spki.raw).map_err(|error| refused(error.to_string()))
}

fn server_name(name: &str) -> Result<SanType, SignError> {
    let refused = || SignError::Name { name: name.into() };
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    rustls_pki_types::DnsName::try_from(name).map_err(|_| refused())?;
    Ok(SanType::DnsName(name.try_into().map_err(|_| refused())?))
}

/// 127 random bits: RFC 5280 §4.1.2.2 wants a positive number, CAs' rules want 64 bits that nobody can guess.
fn serial() -> SerialNumber {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    bytes[0] &= 0x7f;
    SerialNumber::from_slice(&bytes)
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
