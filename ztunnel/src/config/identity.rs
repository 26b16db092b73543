//! Settings of certificates: whom peers are taken for, and which are not accepted any more.

use std::path::PathBuf;

use mesh::identity::{Compliance, IdentityFiles, TlsVersions};
use serde::{Serialize, Serializer};

use super::Reader;

/// How peers are known, and this node's pods to them.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentitySection {
    /// Trust domains that stand for the mesh's own, as `trustDomainAliases` of Istio's mesh config.
    /// `AQUIFER_TRUST_DOMAIN_ALIASES`, comma list, default none.
    pub trust_domain_aliases: Vec<String>,
    /// Revocation lists, PEM or DER; followed while the daemon runs, and need not be there. `CRL_PATH`, default
    /// `/var/run/secrets/istio/crl/ca-crl.pem`.
    pub revocation_lists: PathBuf,
    /// A certificate, its key and its roots (PEM), in the place of the certificate authority, for the one identity that the
    /// certificate names; followed while the daemon runs. `AQUIFER_CERT_FILE`, `AQUIFER_KEY_FILE`,
    /// `AQUIFER_ROOTS_FILE`: all or none.
    #[serde(serialize_with = "paths")]
    pub files: Option<IdentityFiles>,
    /// Rules for the cryptography of tunnels: `pqc` (the post-quantum hybrid alone) or `fips-140-2` (approved algorithms
    /// alone). `COMPLIANCE_POLICY`, default none.
    #[serde(serialize_with = "policy")]
    pub compliance: Compliance,
    /// Whether TLS 1.2 is spoken as well, with peers and with the control plane. `TLS12_ENABLED`, default false.
    #[serde(rename = "tls12", serialize_with = "is_from_12")]
    pub versions: TlsVersions,
}

fn is_from_12<S: Serializer>(versions: &TlsVersions, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_bool(*versions == TlsVersions::From12)
}

fn paths<S: Serializer>(files: &Option<IdentityFiles>, to: S) -> Result<S::Ok, S::Error> {
    files.as_ref().map(|files| [&files.certificate, &files.key, &files.roots]).serialize(to)
}

fn policy<S: Serializer>(compliance: &Compliance, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(match compliance {
        Compliance::None => "",
        Compliance::PostQuantum => "pqc",
        Compliance::Fips1402 => "fips-140-2",
    })
}

impl Reader<'_> {
    pub(super) fn identity(&mut self) -> IdentitySection {
        let aliases = self.text("AQUIFER_TRUST_DOMAIN_ALIASES", "");
        let aliases = aliases.split(',').map(str::trim).filter(|alias| !alias.is_empty());
        IdentitySection {
            trust_domain_aliases: aliases
                .filter_map(|alias| {
                    self.check("AQUIFER_TRUST_DOMAIN_ALIASES", alias, trust_domain(alias))
                })
                .collect(),
            revocation_lists: self.text("CRL_PATH", "/var/run/secrets/istio/crl/ca-crl.pem").into(),
            files: self.identity_files(),
            versions: self.versions(),
            compliance: self.compliance(),
        }
    }

    fn versions(&mut self) -> TlsVersions {
        if !self.parsed("TLS12_ENABLED", false) {
            return TlsVersions::Only13;
        }
        if self.compliance() == Compliance::PostQuantum {
            let reason =
                "TLS 1.2 has no post-quantum key exchange, as COMPLIANCE_POLICY=pqc demands";
            self.refuse("TLS12_ENABLED", true, reason);
        }
        TlsVersions::From12
    }

    fn identity_files(&mut self) -> Option<IdentityFiles> {
        const NAMES: [&str; 3] = ["AQUIFER_CERT_FILE", "AQUIFER_KEY_FILE", "AQUIFER_ROOTS_FILE"];
        match NAMES.map(|name| self.optional(name).map(PathBuf::from)) {
            [None, None, None] => None,
            [Some(certificate), Some(key), Some(roots)] => {
                Some(IdentityFiles { certificate, key, roots })
            }
            some => {
                for (name, _) in NAMES.iter().zip(&some).filter(|(_, path)| path.is_none()) {
                    self.refuse(name, "", "of the three files of an identity all are needed");
                }
                None
            }
        }
    }

    fn compliance(&mut self) -> Compliance {
        let name = self.text("COMPLIANCE_POLICY", "");
        let policy = match name.as_str() {
            "" => Ok(Compliance::None),
            "pqc" => Ok(Compliance::PostQuantum),
            "fips-140-2" => Ok(Compliance::Fips1402),
            _ => Err("expected `pqc` or `fips-140-2`"),
        };
        self.check("COMPLIANCE_POLICY", &name, policy).unwrap_or_default()
    }
}

/// A name with these characters names a namespace of a workload as well, or nobody.
fn trust_domain(alias: &str) -> Result<String, &'static str> {
    if alias.contains('/') || alias.contains(char::is_whitespace) {
        return Err("expected trust domains alone, such as `old.example`, without `spiffe://`");
    }
    Ok(alias.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{check_refused, read},
        Compliance, TlsVersions,
    };

    #[test]
    fn an_identity_in_files_needs_all_three() {
        let two = read(&[("AQUIFER_CERT_FILE", "c"), ("AQUIFER_ROOTS_FILE", "r")]).unwrap_err();
        assert_eq!(
            two.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["AQUIFER_KEY_FILE=: of the three files of an identity all are needed"]
        );
        let all =
            [("AQUIFER_CERT_FILE", "c"), ("AQUIFER_KEY_FILE", "k"), ("AQUIFER_ROOTS_FILE", "r")];
        assert!(read(&all).unwrap().identity.files.is_some());
    }

    #[test]
    fn a_policy_that_is_not_known_is_refused() {
        let known = read(&[("COMPLIANCE_POLICY", "pqc")]).unwrap();
        assert_eq!(known.identity.compliance, Compliance::PostQuantum);
        check_refused("COMPLIANCE_POLICY", "fips", "expected `pqc` or `fips-140-2`");
    }

    #[test]
    fn tls_12_is_spoken_only_if_it_is_asked_for_and_never_where_it_could_not_comply() {
        let versions = |settings: &[(&str, &str)]| read(settings).unwrap().identity.versions;
        assert_eq!(versions(&[]), TlsVersions::Only13);
        assert_eq!(versions(&[("TLS12_ENABLED", "false")]), TlsVersions::Only13);
        assert_eq!(versions(&[("TLS12_ENABLED", "true")]), TlsVersions::From12);
        let both = [("TLS12_ENABLED", "true"), ("COMPLIANCE_POLICY", "pqc")];
        let errors = read(&both).unwrap_err();
        assert_eq!(
            errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "TLS12_ENABLED=true: TLS 1.2 has no post-quantum key exchange, as COMPLIANCE_POLICY=pqc demands"
            ]
        );
    }

    #[test]
    fn aliases_are_a_list_of_trust_domains() {
        let config = read(&[("AQUIFER_TRUST_DOMAIN_ALIASES", " old.example, older.example,")]);
        let aliases = config.unwrap().identity.trust_domain_aliases;
        assert_eq!(aliases, ["old.example", "older.example"]);
        check_refused(
            "AQUIFER_TRUST_DOMAIN_ALIASES",
            "spiffe://old.example",
            "expected trust domains alone, such as `old.example`, without `spiffe://`",
        );
    }
}
