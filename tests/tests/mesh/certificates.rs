//! Certificates as no honest control plane would issue them, for peers that the daemon must refuse.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use time::{Duration, OffsetDateTime};

/// Who signs.
#[derive(Clone, Copy)]
pub(crate) enum Signer<'a> {
    /// The mesh's root, in pilot's data folder.
    Mesh(&'a Path),
    /// A root that nobody knows.
    Stranger,
}

/// When it is valid.
#[derive(Clone, Copy)]
pub(crate) enum Validity {
    Current,
    Expired,
    NotYet,
}

/// A chain and its key, as files.
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Makes a certificate with the URI `identity`, or with no name at all.
pub(crate) fn issue(
    folder: &Path,
    name: &str,
    signer: Signer<'_>,
    identity: Option<&str>,
    when: Validity,
) -> Files {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    let (start, end) = match when {
        Validity::Current => (now - Duration::hours(1), now + Duration::hours(1)),
        Validity::Expired => (now - Duration::hours(2), now - Duration::hours(1)),
        Validity::NotYet => (now + Duration::hours(1), now + Duration::hours(2)),
    };
    (params.not_before, params.not_after) = (start, end);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names =
        identity.into_iter().map(|uri| SanType::URI(uri.try_into().unwrap())).collect();
    let signed = match signer {
        Signer::Mesh(data) => {
            let pem = |file| fs::read_to_string(data.join(file)).unwrap();
            let root_key = KeyPair::from_pem(&pem("root-key.pem")).unwrap();
            params.signed_by(
                &key,
                &Issuer::from_ca_cert_pem(&pem("root-cert.pem"), root_key).unwrap(),
            )
        }
        Signer::Stranger => {
            let mut root = CertificateParams::default();
            root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.signed_by(&key, &Issuer::new(root, KeyPair::generate().unwrap()))
        }
    };
    let files = Files {
        certificate: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
    };
    fs::write(&files.certificate, signed.unwrap().pem()).unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}
