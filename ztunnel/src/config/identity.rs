//! Settings of certificates: whom peers are taken for, and which are not accepted any more.

use std::path::PathBuf;

use mesh::identity::{Compliance, IdentityFiles};
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
            compliance: self.compliance(),
        }
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
        Compliance,
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
