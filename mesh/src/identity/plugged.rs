//! An authority whose certificate somebody else has signed.
//!
//! In: its key, its certificate, what lies between that and the roots, and the roots, as files that others made. Out: an
//! [`Authority`] that hands out the whole way to a root, or why there is none. No files, no network.

use std::time::SystemTime;

use rcgen::Issuer;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{
    authority::{Authority, AuthorityError, read_key},
    peer::system_time,
};

/// Certificates on the way from ours to a root. More is a circle, or nothing that peers would follow.
const LONGEST_WAY: usize = 8;

/// Why an authority that others have signed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PluggedError {
    /// The key is none.
    #[error(transparent)]
    Key(#[from] AuthorityError),
    /// A file is no list of certificates.
    #[error("the {what} cannot be read: {reason}")]
    Unreadable {
        /// Which.
        what: &'static str,
        /// What the parser found.
        reason: String,
    },
    /// The certificate is another key's.
    #[error("the certificate is for another key than the private key")]
    KeyMismatch,
    /// It may not sign others.
    #[error("{subject} may not sign certificates ({lacks})")]
    NotAnAuthority {
        /// Whose certificate.
        subject: String,
        /// What it does not say.
        lacks: &'static str,
    },
    /// No certificate at hand has signed one of the way.
    #[error("{subject} is signed by {issuer}, which is neither in the chain nor among the roots")]
    NoWay {
        /// Whose certificate.
        subject: String,
        /// Who signed it.
        issuer: String,
    },
    /// A certificate is not valid at present.
    #[error("the certificate of {subject} is not valid at present: {reason}")]
    NotValid {
        /// Whose certificate.
        subject: String,
        /// Why.
        reason: &'static str,
    },
}

impl Authority {
    /// Loads an authority that somebody else has signed. All are PEM: its key, its certificate, the certificates between
    /// that and the roots in any order and with any others among them, and the roots.
    ///
    /// # Errors
    /// [`PluggedError`] says which of them is wrong.
    pub fn plugged(
        key_pem: &str,
        certificate_pem: &str,
        chain_pem: &str,
        roots_pem: &str,
        now: SystemTime,
    ) -> Result<Self, PluggedError> {
        let key = read_key(key_pem)?;
        let own = read("authority's certificate", certificate_pem)?;
        let chain = read("chain", chain_pem)?;
        let roots = read("root certificates", roots_pem)?;
        let own = own.first().expect("never empty: read says so");
        let parsed = parse("authority's certificate", own)?;
        if *parsed.public_key().raw != *rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(PluggedError::KeyMismatch);
        }
        let way = Way { chain: parse_all("chain", &chain)?, roots: parse_all("root", &roots)? };
        let (intermediates, not_after) = way.from(parsed, now)?;
        let unreadable =
            |reason: String| PluggedError::Unreadable { what: "authority's certificate", reason };
        let issuer =
            Issuer::from_ca_cert_der(own, key).map_err(|error| unreadable(error.to_string()))?;
        Ok(Self::between(issuer, &intermediates, roots_pem, not_after))
    }
}

/// What may lie between a certificate and a root.
struct Way<'a> {
    chain: Vec<X509Certificate<'a>>,
    roots: Vec<X509Certificate<'a>>,
}

impl<'a> Way<'a> {
    /// The certificates from `own` up to the one that a root has signed, and when the first of all ends. Of a root that
    /// signs by itself, none.
    fn from(
        &self,
        own: X509Certificate<'a>,
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, SystemTime), PluggedError> {
        let mut not_after = checked(&own, now)?;
        if self.roots.iter().any(|root| root.as_raw() == own.as_raw()) {
            return Ok((Vec::new(), not_after));
        }
        let mut way = vec![own];
        loop {
            let last = way.last().expect("begins with one");
            if let Some(root) = self.roots.iter().find(|root| has_signed(root, last)) {
                not_after = not_after.min(checked(root, now)?);
                let owned = |one: &X509Certificate<'_>| CertificateDer::from(one.as_raw().to_vec());
                return Ok((way.iter().map(owned).collect(), not_after));
            }
            let next = self.chain.iter().find(|one| {
                has_signed(one, last) && way.iter().all(|on_way| on_way.as_raw() != one.as_raw())
            });
            let Some(next) = next.filter(|_| way.len() < LONGEST_WAY) else {
                return Err(PluggedError::NoWay {
                    subject: last.subject().to_string(),
                    issuer: last.issuer().to_string(),
                });
            };
            not_after = not_after.min(checked(next, now)?);
            way.push(next.clone());
        }
    }
}

fn has_signed(one: &X509Certificate<'_>, other: &X509Certificate<'_>) -> bool {
    one.subject().as_raw() == other.issuer().as_raw()
        && other.verify_signature(Some(one.public_key())).is_ok()
}

/// When a certificate on the way ends, if it may be there.
fn checked(of: &X509Certificate<'_>, now: SystemTime) -> Result<SystemTime, PluggedError> {
    let subject = || of.subject().to_string();
    let no = |lacks| Err(PluggedError::NotAnAuthority { subject: subject(), lacks });
    if !of.is_ca() {
        return no("basicConstraints lacks CA");
    }
    let usage = of.key_usage().ok().flatten();
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return no("keyUsage lacks keyCertSign");
    }
    let not_after = system_time(of.validity().not_after);
    let not_valid = |reason| Err(PluggedError::NotValid { subject: subject(), reason });
    if now < system_time(of.validity().not_before) {
        return not_valid("it begins later");
    }
    if not_after <= now {
        return not_valid("it has ended");
    }
    Ok(not_after)
}

fn read(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, PluggedError> {
    let unreadable = |reason: String| PluggedError::Unreadable { what, reason };
    let all = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| unreadable(error.to_string()))?;
    if all.is_empty() { Err(unreadable("no certificate in it".into())) } else { Ok(all) }
}

fn parse<'a>(
    what: &'static str,
    der: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, PluggedError> {
    let parsed = X509Certificate::from_der(der);
    let unreadable = |reason: String| PluggedError::Unreadable { what, reason };
    parsed.map(|(_, parsed)| parsed).map_err(|error| unreadable(error.to_string()))
}

fn parse_all<'a>(
    what: &'static str,
    all: &'a [CertificateDer<'_>],
) -> Result<Vec<X509Certificate<'a>>, PluggedError> {
    all.iter().map(|one| parse(what, one)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};

    use super::*;
    use crate::identity::{Spiffe, Validity, peer_identity};

    struct Made {
        issuer: Issuer<'static, KeyPair>,
        pem: String,
        key: String,
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    }

    fn make(params: CertificateParams, by: Option<&Made>) -> Made {
        let key = KeyPair::generate().unwrap();
        let pem = match by {
            Some(by) => params.signed_by(&key, &by.issuer).unwrap().pem(),
            None => params.self_signed(&key).unwrap().pem(),
        };
        Made { key: key.serialize_pem(), issuer: Issuer::new(params, key), pem }
    }

    fn plug(key: &str, own: &str, chain: &[&str], roots: &[&str]) -> Result<Authority, String> {
        let (chain, roots) = (chain.concat(), roots.concat());
        Authority::plugged(key, own, &chain, &roots, SystemTime::now())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_workload_is_handed_the_way_to_the_root() {
        let root = make(params("root"), None);
        let middle = make(params("middle"), Some(&root));
        let own = make(params("own"), Some(&middle));
        let other = make(params("other"), None);
        // As people put them there: with our own, the root and a stranger among them, in any order.
        let chain = [&*root.pem, &other.pem, &middle.pem, &own.pem];
        let authority = plug(&own.key, &own.pem, &chain, &[&other.pem, &root.pem]).unwrap();
        let web = Spiffe::new("cluster.local", "shop", "web").unwrap();
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let hour = Duration::from_secs(3600);
        let validity = Validity::starting(SystemTime::now(), hour, hour);
        let handed = authority.sign(&csr, &web, validity).unwrap();
        let [leaf, first, second, roots] = &*handed else { panic!("{}", handed.len()) };
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(der(first), der(&own.pem));
        assert_eq!(der(second), der(&middle.pem));
        assert_eq!(*roots, format!("{}{}", other.pem, root.pem));
        let leaf = der(leaf);
        assert_eq!(peer_identity(std::slice::from_ref(&leaf)).unwrap(), web);
        let (own, leaf) = (der(first), parse("leaf", &leaf).unwrap());
        assert!(has_signed(&parse("own", &own).unwrap(), &leaf));
    }

    #[test]
    fn a_root_may_sign_by_itself() {
        let root = make(params("root"), None);
        let authority = plug(&root.key, &root.pem, &[&root.pem], &[&root.pem]).unwrap();
        let server = authority.server_certificate(
            &["localhost".into()],
            Validity::starting(SystemTime::now(), Duration::ZERO, Duration::from_secs(60)),
        );
        assert_eq!(server.unwrap().chain.len(), 1);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let root = make(params("root"), None);
        let own = make(params("own"), Some(&root));
        let check = |made: &Made, roots: &[&str], expected: &str| {
            let found = plug(&made.key, &made.pem, &[&made.pem], roots).err();
            assert_eq!(found.as_deref(), Some(expected));
        };
        let stranger = make(params("root"), None);
        let no_way =
            "CN=own is signed by CN=root, which is neither in the chain nor among the roots";
        check(&own, &[&stranger.pem], no_way);
        let mismatch = plug(&root.key, &own.pem, &[&own.pem], &[&root.pem]).err();
        let expected = "the certificate is for another key than the private key";
        assert_eq!(mismatch.as_deref(), Some(expected));
        let empty = plug(&own.key, "", &[&own.pem], &[&root.pem]).err();
        let expected = "the authority's certificate cannot be read: no certificate in it";
        assert_eq!(empty.as_deref(), Some(expected));
        let with = |change: fn(&mut CertificateParams)| {
            let mut params = params("own");
            change(&mut params);
            make(params, Some(&root))
        };
        let leaf = with(|params| params.is_ca = IsCa::ExplicitNoCa);
        check(&leaf, &[&root.pem], "CN=own may not sign certificates (basicConstraints lacks CA)");
        let other_use = with(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
        check(
            &other_use,
            &[&root.pem],
            "CN=own may not sign certificates (keyUsage lacks keyCertSign)",
        );
        let old = with(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
        check(
            &old,
            &[&root.pem],
            "the certificate of CN=own is not valid at present: it has ended",
        );
    }
}
