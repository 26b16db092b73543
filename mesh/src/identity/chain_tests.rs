//! What the certificate authority may send, and what is said of the rest.

use std::error::Error;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::*;
use crate::identity::{Authority, Validity, key::RequestedKey};

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

/// A key, and what an authority signed for it.
struct Issued {
    key: RequestedKey,
    chain: Vec<String>,
}

impl Issued {
    fn new() -> Self {
        Self::with(&authority(), &web(), hour())
    }

    fn with(authority: &Authority, who: &Spiffe, validity: Validity) -> Self {
        let key = RequestedKey::generate(&web()).unwrap();
        let chain = authority.sign(&key.csr_pem(), who, validity).unwrap();
        Self { key, chain }
    }

    fn verdict_at(&self, now: SystemTime) -> String {
        match IssuedChain::check(&self.chain, self.key.signing_key().unwrap(), &web(), now) {
            Ok(chain) => {
                let (presented, roots) = (chain.certified.cert.len(), chain.roots.len());
                format!("{presented} presented, {roots} roots")
            }
            Err(error) => {
                let causes = std::iter::successors(Some(&error as &dyn Error), |&e| e.source());
                causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
            }
        }
    }

    fn check(&self, expected: &str) {
        assert_eq!(self.verdict_at(now()), expected);
    }
}

#[test]
fn a_leaf_and_its_root_are_enough() {
    Issued::new().check("1 presented, 1 roots");
}

#[test]
fn the_last_element_may_hold_several_roots() {
    let mut issued = Issued::new();
    let old = authority();
    issued.chain[1].insert_str(0, old.roots_pem());
    issued.check("1 presented, 2 roots");
}

#[test]
fn an_empty_chain_is_refused() {
    let issued = Issued { chain: vec![], ..Issued::new() };
    issued.check("the certificate authority sent an empty chain");
}

#[test]
fn a_chain_without_a_root_is_refused() {
    let mut issued = Issued::new();
    issued.chain.truncate(1);
    issued.check("the certificate authority sent no root certificate");
}

#[test]
fn what_is_no_certificate_is_refused_with_its_place() {
    for (element, text) in [(0, ""), (1, "hello"), (1, "-----BEGIN PRIVATE KEY-----\n")] {
        let mut issued = Issued::new();
        issued.chain[element] = text.into();
        let verdict = issued.verdict_at(now());
        let expected = format!("element {element} of the chain is not a PEM certificate: ");
        assert!(verdict.starts_with(&expected), "{verdict}");
    }
}

#[test]
fn several_leaves_are_refused() {
    let mut issued = Issued::new();
    issued.chain[0] = issued.chain[0].repeat(2);
    issued.check("the first element of the chain has 2 certificates, expected the leaf alone");
}

#[test]
fn a_certificate_for_somebody_else_is_refused() {
    let cart = Spiffe::new("cluster.local", "shop", "cart").unwrap();
    Issued::with(&authority(), &cart, hour()).check(
        "the issued certificate is for spiffe://cluster.local/ns/shop/sa/cart, asked for \
         spiffe://cluster.local/ns/shop/sa/web",
    );
}

#[test]
fn a_certificate_for_another_key_is_refused() {
    let issued = Issued { key: RequestedKey::generate(&web()).unwrap(), ..Issued::new() };
    issued.check("the issued certificate is for another key than the one requested");
}

#[test]
fn a_root_that_did_not_sign_the_leaf_is_refused() {
    let mut issued = Issued::new();
    issued.chain[1] = authority().roots_pem().into();
    issued.check(
        "the issued certificate does not stand as a server under the roots sent with it: invalid \
         peer certificate: BadSignature",
    );
}

#[test]
fn validity_is_by_our_clock() {
    let issued = Issued::new();
    let table = [
        (now() - Duration::from_secs(5), "the issued certificate is valid only in 5s"),
        (now(), "1 presented, 1 roots"),
        (now() + HOUR, "1 presented, 1 roots"),
        (now() + HOUR + Duration::from_secs(5), "the issued certificate expired 5s ago"),
    ];
    for (at, expected) in table {
        let verdict = issued.verdict_at(at);
        assert_eq!(verdict.trim_end_matches(" by this machine's clock"), expected);
    }
}

/// Signs with rcgen itself what an [`Authority`] does not.
fn params(names: &[SanType], usages: &[ExtendedKeyUsagePurpose]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.into();
    params.extended_key_usages = usages.into();
    params.not_before = now().into();
    params.not_after = (now() + HOUR).into();
    params
}

fn issuer_params() -> CertificateParams {
    let mut params = params(&[], &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn root() -> CertifiedIssuer<'static, KeyPair> {
    CertifiedIssuer::self_signed(issuer_params(), KeyPair::generate().unwrap()).unwrap()
}

fn issued_by(
    issuer: &CertifiedIssuer<'_, KeyPair>,
    names: &[SanType],
    usages: &[ExtendedKeyUsagePurpose],
) -> Issued {
    let key = RequestedKey::generate(&web()).unwrap();
    let csr = rcgen::CertificateSigningRequestParams::from_pem(&key.csr_pem()).unwrap();
    let leaf = params(names, usages).signed_by(&csr.public_key, issuer).unwrap();
    Issued { key, chain: vec![leaf.pem(), issuer.pem()] }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

const BOTH: [ExtendedKeyUsagePurpose; 2] =
    [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];

#[test]
fn intermediates_are_presented_with_the_leaf() {
    let root = root();
    let mut params = issuer_params();
    params.distinguished_name.push(rcgen::DnType::CommonName, "intermediate");
    let intermediate =
        CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &root).unwrap();
    let mut issued = issued_by(&intermediate, &[uri(web().as_str())], &BOTH);
    issued.chain.push(root.pem());
    issued.check("2 presented, 1 roots");
    issued.chain.remove(1);
    let verdict = issued.verdict_at(now());
    assert!(verdict.ends_with("invalid peer certificate: UnknownIssuer"), "{verdict}");
}

#[test]
fn a_certificate_for_one_side_only_is_refused() {
    let table = [
        (ExtendedKeyUsagePurpose::ClientAuth, "server"),
        (ExtendedKeyUsagePurpose::ServerAuth, "client"),
    ];
    for (usage, side) in table {
        let verdict = issued_by(&root(), &[uri(web().as_str())], &[usage]).verdict_at(now());
        let expected = format!("the issued certificate does not stand as a {side} under the roots");
        assert!(verdict.starts_with(&expected), "{verdict}");
    }
}

#[test]
fn a_certificate_without_a_workload_is_refused() {
    let dns = SanType::DnsName("web.shop.svc".try_into().unwrap());
    issued_by(&root(), &[dns], &BOTH).check(
        "the issued certificate cannot be used: the peer's certificate names no SPIFFE identity",
    );
    issued_by(&root(), &[uri("https://web")], &BOTH).check(
        "the issued certificate cannot be used: the peer's certificate names no workload: \
         `https://web` does not begin with spiffe://",
    );
}

#[test]
fn the_name_asked_for_must_be_the_first() {
    let (other, own) = (uri("spiffe://cluster.local/ns/shop/sa/cart"), uri(web().as_str()));
    issued_by(&root(), &[own.clone(), other.clone()], &BOTH).check("1 presented, 1 roots");
    let verdict = issued_by(&root(), &[other, own], &BOTH).verdict_at(now());
    assert!(
        verdict.starts_with("the issued certificate is for spiffe://cluster.local/ns/shop/sa/cart")
    );
}

proptest::proptest! {
    #[test]
    fn any_text_is_refused_or_accepted(chain in proptest::collection::vec("\\PC*", 0..4)) {
        let issued = Issued { chain, ..Issued::new() };
        issued.verdict_at(now());
    }
}
