//! Settings of certificates: whom peers are taken for, and which are not accepted any more.

use std::path::PathBuf;

use serde::Serialize;

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
        }
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
    use super::super::tests::{check_refused, read};

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
