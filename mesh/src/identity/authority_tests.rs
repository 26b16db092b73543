//! What an authority signs, and what it refuses.

use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm};

use super::*;
use crate::identity::peer::Leaf;

const HOUR: Duration = Duration::from_secs(3600);

fn web() -> Spiffe {
    Spiffe::new("cluster.local", "shop", "web").unwrap()
}

/// X.509 counts whole seconds, so the tests' present is one.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn hour() -> Validity {
    Validity::starting(now(), Duration::ZERO, HOUR)
}

fn authority() -> Authority {
    Authority::create("cluster.local", hour()).unwrap()
}

fn csr(algorithm: &'static SignatureAlgorithm) -> String {
    let key = KeyPair::generate_for(algorithm).unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

fn verdict(csr_pem: &str, validity: Validity) -> String {
    match authority().sign(csr_pem, &web(), validity) {
        Ok(chain) => format!("a chain of {}", chain.len()),
        Err(error) => error.to_string(),
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn a_leaf_bears_the_name_it_was_authorised_for_and_no_other() {
    let key = KeyPair::generate().unwrap();
    let mut asks_for_more =
        CertificateParams::new(["admin.example".to_owned(), "web.shop".to_owned()]).unwrap();
    asks_for_more.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let csr = asks_for_more.serialize_request(&key).unwrap().pem().unwrap();
    let leaf = der(&authority().sign(&csr, &web(), hour()).unwrap()[0]);
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(format!("{names:?}"), format!("[URI({:?})]", web().as_str()));
    assert!(!leaf.is_ca());
    assert_eq!(leaf.subject().iter().count(), 0);
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
}

#[test]
fn serial_numbers_differ_even_for_one_key() {
    let (authority, csr) = (authority(), csr(&PKCS_ECDSA_P256_SHA256));
    let serial = || {
        let leaf = der(&authority.sign(&csr, &web(), hour()).unwrap()[0]);
        X509Certificate::from_der(&leaf).unwrap().1.serial.clone()
    };
    assert_ne!(serial(), serial());
}

#[test]
fn keys_that_peers_accept_are_signed() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384] {
        assert_eq!(verdict(&csr(algorithm), hour()), "a chain of 2");
    }
    assert_eq!(
        verdict(&csr(&PKCS_ED25519), hour()),
        "the key in the request is of algorithm 1.3.101.112; ECDSA P-256 or P-384, or RSA from 2048 \
         bits, is accepted"
    );
}

#[test]
fn an_rsa_key_of_2048_bits_is_signed() {
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    assert_eq!(verdict(&csr, hour()), "a chain of 2");
}

#[test]
fn a_request_must_be_signed_by_its_key() {
    let pem = csr(&PKCS_ECDSA_P256_SHA256);
    let mut request =
        CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
    let signed = request.len();
    // The last bytes are the signature's.
    request[signed - 5] ^= 1;
    let refusal = requested_key_of(&request).expect_err("refused");
    assert_eq!(refusal.to_string(), "the certificate signing request is not signed by its own key");
}

#[test]
fn what_is_no_request_is_malformed() {
    for text in ["", "hello", authority().roots_pem()] {
        let refusal = verdict(text, hour());
        let expected = "the certificate signing request cannot be read: ";
        assert!(refusal.starts_with(expected), "{refusal}");
    }
}

#[test]
fn a_leaf_ends_with_its_root() {
    let leaf = der(&authority()
        .sign(
            &csr(&PKCS_ECDSA_P256_SHA256),
            &web(),
            Validity { not_before: now(), not_after: now() + 2 * HOUR },
        )
        .unwrap()[0]);
    assert_eq!(Leaf::parse(&leaf).unwrap().not_after, now() + HOUR);
}

#[test]
fn an_ended_root_signs_nothing() {
    let later = Validity::starting(now() + 2 * HOUR, Duration::ZERO, HOUR);
    let refusal = verdict(&csr(&PKCS_ECDSA_P256_SHA256), later);
    assert_eq!(refusal, "the root certificate has expired");
}

#[test]
fn a_loaded_root_signs_as_the_one_that_was_stored() {
    let made = authority();
    let loaded = Authority::load(&made.key_pem(), made.roots_pem()).unwrap();
    assert_eq!(loaded.root_not_after(), made.root_not_after());
    let chain = loaded.sign(&csr(&PKCS_ECDSA_P256_SHA256), &web(), hour()).unwrap();
    let (leaf, root) = (der(&chain[0]), der(made.roots_pem()));
    let (_, root) = X509Certificate::from_der(&root).unwrap();
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    assert_eq!(leaf.issuer(), root.subject());
}

#[test]
fn a_leaf_is_no_root() {
    let authority = authority();
    let made = authority.server_certificate(&["localhost".to_owned()], hour()).unwrap();
    let key = KeyPair::try_from(&made.key).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::ExplicitNoCa;
    let leaf = params.self_signed(&key).unwrap().pem();
    let refusal = Authority::load(&key.serialize_pem(), &leaf).err().expect("refused");
    assert_eq!(
        refusal.to_string(),
        "the root certificate is not a certificate authority's (basicConstraints lacks CA)"
    );
}

proptest::proptest! {
    #[test]
    fn a_damaged_request_never_panics(
        changes in proptest::collection::vec((0_usize..1000, 0_u8..), 1..8),
    ) {
        let pem = csr(&PKCS_ECDSA_P256_SHA256);
        let mut request =
            CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        for (at, byte) in changes {
            let at = at % request.len();
            request[at] = byte;
        }
        let _ = requested_key_of(&request);
    }
}
