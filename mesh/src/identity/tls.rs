//! The cryptography of a tunnel: versions of TLS, suites and key exchanges in order of preference.
//!
//! Out: the rustls provider and the versions that every configuration of this module is built with. Certificates are not
//! its business.

use std::sync::{Arc, LazyLock};

use rustls::{
    SupportedCipherSuite, SupportedProtocolVersion,
    crypto::{
        CryptoProvider, SupportedKxGroup,
        aws_lc_rs::{self, cipher_suite, kx_group},
    },
    version::{TLS12, TLS13},
};

/// What each side offers in ALPN: tunnels are HTTP/2.
pub(super) const ALPN: &[u8] = b"h2";

/// Whether the processor computes AES itself.
#[derive(Clone, Copy)]
enum Aes {
    Hardware,
    Software,
}

impl Aes {
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        let present = std::arch::is_x86_feature_detected!("aes")
            && std::arch::is_x86_feature_detected!("pclmulqdq");
        #[cfg(target_arch = "aarch64")]
        let present = std::arch::is_aarch64_feature_detected!("aes")
            && std::arch::is_aarch64_feature_detected!("pmull");
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let present = false;
        if present { Self::Hardware } else { Self::Software }
    }
}

/// Rules that the cryptography of tunnels must follow, of which both ends of a mesh must have the same.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Compliance {
    /// Our own preferences.
    #[default]
    None,
    /// Only the post-quantum hybrid as key exchange.
    PostQuantum,
    /// Only algorithms that FIPS 140-2 approves: AES-GCM, ECDHE on P-256 and P-384. Which library computes them does not
    /// change: this is no validated module.
    Fips1402,
}

/// Which versions of TLS are spoken, with peers and with the control plane.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum TlsVersions {
    /// TLS 1.3 alone.
    #[default]
    Only13,
    /// TLS 1.2 with who has nothing newer.
    From12,
}

impl TlsVersions {
    pub(super) fn protocols(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Self::Only13 => &BOTH[..1],
            Self::From12 => &BOTH,
        }
    }
}

/// The cryptography of tunnels under `compliance`, in `versions`.
pub(super) fn provider_under(compliance: Compliance, versions: TlsVersions) -> Arc<CryptoProvider> {
    let provider = compliant(compliance);
    match versions {
        TlsVersions::Only13 => provider,
        TlsVersions::From12 => {
            let mut both = CryptoProvider::clone(&provider);
            both.cipher_suites.extend(TLS12_SUITES);
            Arc::new(both)
        }
    }
}

/// Those with forward secrecy and authenticated encryption: the ones of Istio's proxies, the shorter key first.
const TLS12_SUITES: [SupportedCipherSuite; 4] = [
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
];

fn compliant(compliance: Compliance) -> Arc<CryptoProvider> {
    let ours = provider();
    match compliance {
        Compliance::None => ours,
        Compliance::PostQuantum => Arc::new(CryptoProvider {
            kx_groups: vec![kx_group::X25519MLKEM768],
            ..CryptoProvider::clone(&ours)
        }),
        Compliance::Fips1402 => Arc::new(CryptoProvider {
            cipher_suites: suites(Aes::Hardware),
            kx_groups: vec![kx_group::SECP256R1, kx_group::SECP384R1],
            ..CryptoProvider::clone(&ours)
        }),
    }
}

/// The cryptography of every TLS connection of the mesh, the control plane's too: TLS 1.3 alone.
pub fn provider() -> Arc<CryptoProvider> {
    // What the processor has does not change while we run.
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: suites(Aes::detect()),
            kx_groups: key_exchanges(),
            ..aws_lc_rs::default_provider()
        })
    });
    PROVIDER.clone()
}

/// AES-128 before AES-256: a tenth fewer cycles per byte, and TLS 1.3 itself is not stronger for the longer key.
/// Without hardware AES, ChaCha20 is several times faster than either, and free of timing channels.
fn suites(aes: Aes) -> Vec<SupportedCipherSuite> {
    let mut suites = match aes {
        Aes::Hardware => Vec::new(),
        Aes::Software => vec![cipher_suite::TLS13_CHACHA20_POLY1305_SHA256],
    };
    suites.extend([cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384]);
    suites
}

/// The post-quantum hybrid first: what is recorded today must not be readable later.
fn key_exchanges() -> Vec<&'static dyn SupportedKxGroup> {
    vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1]
}

#[cfg(test)]
mod tests {
    use rustls::{CipherSuite, NamedGroup};

    use super::*;

    fn offered(aes: Aes) -> Vec<CipherSuite> {
        suites(aes).iter().map(SupportedCipherSuite::suite).collect()
    }

    #[test]
    fn the_shorter_aes_key_comes_first() {
        assert_eq!(
            offered(Aes::Hardware),
            [CipherSuite::TLS13_AES_128_GCM_SHA256, CipherSuite::TLS13_AES_256_GCM_SHA384]
        );
    }

    #[test]
    fn chacha20_is_for_processors_without_aes() {
        assert_eq!(
            offered(Aes::Software),
            [
                CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
                CipherSuite::TLS13_AES_128_GCM_SHA256,
                CipherSuite::TLS13_AES_256_GCM_SHA384
            ]
        );
    }

    #[test]
    fn a_policy_leaves_only_what_it_approves() {
        let groups = |compliance| {
            let groups = &provider_under(compliance, TlsVersions::Only13).kx_groups;
            groups.iter().map(|group| group.name()).collect::<Vec<_>>()
        };
        assert_eq!(groups(Compliance::PostQuantum), [NamedGroup::X25519MLKEM768]);
        let approved = [NamedGroup::secp256r1, NamedGroup::secp384r1];
        assert_eq!(groups(Compliance::Fips1402), approved);
        let suites = &provider_under(Compliance::Fips1402, TlsVersions::Only13).cipher_suites;
        let suites: Vec<_> = suites.iter().map(SupportedCipherSuite::suite).collect();
        assert_eq!(suites, offered(Aes::Hardware));
    }

    #[test]
    fn the_hybrid_key_exchange_comes_first() {
        let groups: Vec<_> = provider().kx_groups.iter().map(|group| group.name()).collect();
        assert_eq!(
            groups,
            [
                NamedGroup::X25519MLKEM768,
                NamedGroup::X25519,
                NamedGroup::secp256r1,
                NamedGroup::secp384r1
            ]
        );
    }
}
