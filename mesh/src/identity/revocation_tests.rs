//! Which certificates a file of lists takes back, and which files are refused.

use std::{sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CrlIssuingDistributionPoint, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams,
};
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::{ServerName, UnixTime};

use super::*;
use crate::identity::{
    Credential, LocalCa, Spiffe, Verification, chain,
    verifier::{ServerVerifier, Trusted},
};

const HOUR: Duration = Duration::from_secs(3600);

fn ca() -> LocalCa {
    LocalCa::new("cluster.local").unwrap()
}

fn credential(ca: &LocalCa) -> Credential {
    ca.credential(&Spiffe::new("cluster.local", "shop", "web").unwrap()).unwrap()
}

fn is_revoked(file: &str, credential: &Credential) -> bool {
    let chain = PeerChain::of(credential.chain()).unwrap();
    Revocations::parse(file.as_bytes()).unwrap().revoked(&chain, credential.roots()).is_some()
}

fn refusal(file: &[u8]) -> String {
    Revocations::parse(file).unwrap_err().to_string()
}

/// A list of some issuer with `points`, in DER.
fn list_of(point: Option<CrlIssuingDistributionPoint>) -> Vec<u8> {
    let issuer = Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
    list_by(&issuer, 7, point)
}

fn list_by(
    issuer: &Issuer<'_, KeyPair>,
    serial: u64,
    point: Option<CrlIssuingDistributionPoint>,
) -> Vec<u8> {
    let now = SystemTime::now();
    let params = CertificateRevocationListParams {
        this_update: (now - 2 * HOUR).into(),
        next_update: (now - HOUR).into(),
        crl_number: 1_u64.into(),
        issuing_distribution_point: point,
        revoked_certs: vec![RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).unwrap().der().to_vec()
}

#[test]
fn what_is_on_the_list_is_revoked_and_nothing_else() {
    let ca = ca();
    let (stolen, fresh) = (credential(&ca), credential(&ca));
    let list = ca.revocation_list(&[&stolen]).unwrap();
    assert!(is_revoked(&list, &stolen));
    assert!(!is_revoked(&list, &fresh));
}

#[test]
fn a_list_counts_for_its_own_root_though_another_has_the_same_name() {
    let (old, new) = (ca(), ca());
    let (of_old, of_new) = (credential(&old), credential(&new));
    let [list_of_old, list_of_new] =
        [&old, &new].map(|ca| ca.revocation_list(&[&of_old, &of_new]).unwrap());
    assert!(is_revoked(&list_of_old, &of_old));
    assert!(!is_revoked(&list_of_old, &of_new));
    let both = format!("{list_of_old}{list_of_new}");
    assert!(is_revoked(&both, &of_old) && is_revoked(&both, &of_new));
}

fn authority(name: &str, serial: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(serial.into());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// What a handshake says of `leaf` with `intermediates` under `root`, by the lists of `file`.
fn verdict(
    leaf: &CertificateDer<'_>,
    intermediates: [&CertificateDer<'_>; 2],
    root: &CertificateDer<'static>,
    file: &[u8],
) -> &'static str {
    let revocations = Arc::new(Revocations::parse(file).unwrap());
    let own = Spiffe::new("cluster.local", "shop", "cart").unwrap();
    let verification = Verification { revocations, ..Verification::default() };
    let trusted = Trusted::new(&own, std::slice::from_ref(root), &verification);
    let anchors = Arc::new(chain::anchors(&trusted.roots).unwrap());
    let intermediates = intermediates.map(|der| CertificateDer::from(der.as_ref()));
    let name = ServerName::try_from("web.example").unwrap();
    let verifier = ServerVerifier::new(anchors, Arc::new(trusted));
    let verified = verifier.verify_server_cert(leaf, &intermediates, &name, &[], UnixTime::now());
    match verified {
        Ok(_) => "accepted",
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::Revoked)) => "revoked",
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_decoy_with_the_name_of_an_authority_hides_no_revocation() {
    let [root_key, middle_key, own_key, leaf_key] = [(); 4].map(|()| KeyPair::generate().unwrap());
    let root_certificate = authority("root", 1).self_signed(&root_key).unwrap().into();
    let root = Issuer::new(authority("root", 1), root_key);
    let middle_certificate = authority("middle", 2).signed_by(&middle_key, &root).unwrap().into();
    let middle = Issuer::new(authority("middle", 2), middle_key);
    let own = Issuer::new(authority("nobody", 6), own_key);
    let decoy = authority("middle", 3);
    let decoy = decoy.signed_by(&KeyPair::generate().unwrap(), &own).unwrap().into();
    let mut leaf = authority("leaf", 4);
    leaf.is_ca = IsCa::NoCa;
    let leaf = leaf.signed_by(&leaf_key, &middle).unwrap().into();
    for intermediates in [[&decoy, &middle_certificate], [&middle_certificate, &decoy]] {
        let check = |issuer: &Issuer<'_, KeyPair>, serial, expected| {
            let list = list_by(issuer, serial, None);
            let found = verdict(&leaf, intermediates, &root_certificate, &list);
            assert_eq!(found, expected, "{serial}");
        };
        check(&middle, 4, "revoked");
        check(&root, 2, "revoked");
        check(&middle, 5, "accepted");
        check(&own, 3, "accepted");
        check(&root, 4, "accepted");
    }
}

#[test]
fn a_list_may_be_in_der_and_is_kept_though_it_should_have_been_replaced() {
    let revocations = Revocations::parse(&list_of(None)).unwrap();
    assert_eq!(revocations.count(), 1);
    assert!(revocations.next_update().unwrap() < SystemTime::now());
    let point = CrlIssuingDistributionPoint {
        distribution_point: CrlDistributionPoint { uris: vec!["http://ca/crl".into()] },
        scope: None,
    };
    assert_eq!(Revocations::parse(&list_of(Some(point))).unwrap().count(), 1);
}

#[test]
fn a_file_with_anything_wrong_in_it_is_refused_whole() {
    let good = ca().revocation_list(&[]).unwrap();
    assert!(Revocations::parse(good.as_bytes()).is_ok());
    let none = "it holds no revocation list in PEM or DER: no list in it";
    assert_eq!(refusal(b""), none);
    assert_eq!(refusal(b"hello"), none);
    let cut = &good[..good.len() / 2];
    assert!(refusal(cut.as_bytes()).starts_with("it holds no revocation list"), "{cut}");
    let bad = format!("{good}-----BEGIN X509 CRL-----\naGVsbG8=\n-----END X509 CRL-----\n");
    assert!(refusal(bad.as_bytes()).starts_with("revocation list 1 cannot be read: "));
    let long = [&list_of(None)[..], b"!"].concat();
    assert_eq!(refusal(&long), "revocation list 0 cannot be read: 1 bytes follow it");
}

proptest::proptest! {
    #[test]
    fn a_damaged_list_never_panics(
        changes in proptest::collection::vec((0_usize..1000, 0_u8..), 1..8),
        length in 0_usize..1000,
    ) {
        let mut der = list_of(None);
        for (at, byte) in changes {
            let at = at % der.len();
            der[at] = byte;
        }
        der.truncate(length.max(der.len() / 2));
        if let Ok(revocations) = Revocations::parse(&der) {
            let ca = ca();
            let credential = credential(&ca);
            let chain = PeerChain::of(credential.chain()).unwrap();
            let _ = revocations.revoked(&chain, credential.roots());
        }
    }

    #[test]
    fn any_bytes_are_a_list_or_refused(file in proptest::collection::vec(0_u8.., 0..300)) {
        let _ = Revocations::parse(&file);
    }

    #[test]
    fn any_text_between_the_marks_is_a_list_or_refused(text in "[A-Za-z0-9+/=\\s-]{0,300}") {
        let file = format!("-----BEGIN X509 CRL-----\n{text}\n-----END X509 CRL-----\n");
        let _ = Revocations::parse(file.as_bytes());
    }
}
