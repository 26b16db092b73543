//! The certificates and roots that rules name by `credentialName`, as a waypoint asks for them.
//!
//! In: Secrets of one namespace. Out: resources by the names that its clusters have. Only those who have proven to be of
//! the namespace get them, and nothing here is ever printed.

use prost::Message;
use proto::envoy::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, Secret, TlsCertificate, secret,
    },
};
use twox_hash::XxHash64;

use crate::{
    compile::{Resource, Resources},
    manifests::{Object, Secret as Written},
};

/// What the name of roots ends with.
const ROOTS: &str = "-cacert";

/// All that the Secrets hold.
pub(crate) fn resources<'a>(secrets: impl Iterator<Item = &'a Object<Written>>) -> Resources {
    let mut all = Resources::new();
    for secret in secrets {
        let name = &*secret.meta.name;
        let data = |keys: [&str; 2]| {
            let mut values = keys.iter().filter_map(|key| secret.spec.data.get(*key));
            values.find(|value| !value.is_empty())
        };
        let pair = data(["tls.crt", "cert"]).zip(data(["tls.key", "key"]));
        if let Some((chain, key)) = pair {
            put(&mut all, format!("kubernetes://{name}"), certificate(chain, key));
        }
        if let Some(roots) = data(["ca.crt", "cacert"]) {
            // A Secret of its own for roots comes before one that has everything.
            let own = name.strip_suffix(ROOTS);
            let resource = format!("kubernetes://{}{ROOTS}", own.unwrap_or(name));
            if own.is_some() || !all.contains_key(resource.as_str()) {
                put(&mut all, resource, trusted(roots));
            }
        }
    }
    all
}

fn put(all: &mut Resources, name: String, of: secret::Type) {
    let message = Secret { name: name.clone(), r#type: Some(of) };
    let encoded = message.encode_to_vec();
    let hash = XxHash64::oneshot(0, &encoded);
    all.insert(name.into(), Resource { encoded, hash });
}

fn certificate(chain: &[u8], key: &[u8]) -> secret::Type {
    secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline(chain)),
        private_key: Some(inline(key)),
        ..TlsCertificate::default()
    })
}

fn trusted(roots: &[u8]) -> secret::Type {
    secret::Type::ValidationContext(CertificateValidationContext {
        trusted_ca: Some(inline(roots)),
        ..CertificateValidationContext::default()
    })
}

fn inline(bytes: &[u8]) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec())), ..DataSource::default() }
}
