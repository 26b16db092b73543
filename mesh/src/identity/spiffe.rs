//! The SPIFFE name of a workload.
//!
//! In: a URI, or its three parts. Out: a [`Spiffe`], or the [`SpiffeError`] that says what is wrong with it.

use std::{fmt, ops::Range, str::FromStr, sync::Arc};

/// Longest accepted name, in bytes (SPIFFE-ID §2.3).
const MAX_BYTES: usize = 2048;
const SCHEME: &str = "spiffe://";

/// A workload's name: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// No part is empty and the whole is at most 2048 bytes (SPIFFE-ID §2.3): [`Spiffe::parse`] and [`Spiffe::new`] are
/// the only ways in. A clone shares the text.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Spiffe {
    uri: Arc<str>,
    /// Where the trust domain ends; the other bounds follow from it and `namespace_end`.
    trust_domain_end: u16,
    namespace_end: u16,
}

/// Why a text is no SPIFFE name of a workload.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SpiffeError {
    /// Another URI scheme, or none.
    #[error("`{uri}` does not begin with spiffe://")]
    Scheme {
        /// The text as given.
        uri: String,
    },
    /// The path is not `/ns/<namespace>/sa/<service account>`.
    #[error(
        "`{uri}` is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
    )]
    Form {
        /// The text as given.
        uri: String,
    },
    /// A part has no character.
    #[error("the {part} of `{uri}` is empty")]
    EmptyPart {
        /// The text as given.
        uri: String,
        /// Which part.
        part: &'static str,
    },
    /// A part has a character that SPIFFE-ID §2.1 and §2.2 exclude.
    #[error("the {part} of `{uri}` contains {found:?}")]
    Character {
        /// The text as given.
        uri: String,
        /// Which part.
        part: &'static str,
        /// The first excluded character.
        found: char,
    },
    /// Longer than SPIFFE-ID §2.3 allows.
    #[error("the name has {bytes} bytes, at most {MAX_BYTES} are allowed")]
    TooLong {
        /// Length of the name.
        bytes: usize,
    },
}

impl Spiffe {
    /// Reads a name from its URI form.
    ///
    /// # Errors
    /// [`SpiffeError`] names the part that is wrong.
    pub fn parse(uri: &str) -> Result<Self, SpiffeError> {
        if uri.len() > MAX_BYTES {
            return Err(SpiffeError::TooLong { bytes: uri.len() });
        }
        let rest =
            uri.strip_prefix(SCHEME).ok_or_else(|| SpiffeError::Scheme { uri: uri.into() })?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [trust_domain, "ns", namespace, "sa", service_account] = parts[..] else {
            return Err(SpiffeError::Form { uri: uri.into() });
        };
        Self::check("trust domain", trust_domain, uri)?;
        Self::check("namespace", namespace, uri)?;
        Self::check("service account", service_account, uri)?;
        let trust_domain_end = SCHEME.len() + trust_domain.len();
        let namespace_end = trust_domain_end + "/ns/".len() + namespace.len();
        Ok(Self {
            uri: uri.into(),
            trust_domain_end: u16::try_from(trust_domain_end).expect("at most 2048: checked above"),
            namespace_end: u16::try_from(namespace_end).expect("at most 2048: checked above"),
        })
    }

    /// Makes a name of its parts.
    ///
    /// # Errors
    /// [`SpiffeError`] names the part that is wrong.
    pub fn new(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeError> {
        Self::parse(&format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}"))
    }

    /// The trust domain, such as `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        self.part(SCHEME.len()..self.trust_domain_end.into())
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        self.part(usize::from(self.trust_domain_end) + "/ns/".len()..self.namespace_end.into())
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        self.part(usize::from(self.namespace_end) + "/sa/".len()..self.uri.len())
    }

    /// The whole name, with `spiffe://`.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The name without `spiffe://`, as policies compare it: `<trust domain>/ns/<namespace>/sa/<service account>`.
    pub fn principal(&self) -> &str {
        self.part(SCHEME.len()..self.uri.len())
    }

    fn part(&self, range: Range<usize>) -> &str {
        &self.uri[range]
    }

    fn check(part: &'static str, value: &str, uri: &str) -> Result<(), SpiffeError> {
        if value.is_empty() {
            return Err(SpiffeError::EmptyPart { uri: uri.into(), part });
        }
        match value.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))) {
            Some(found) => Err(SpiffeError::Character { uri: uri.into(), part, found }),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Spiffe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for Spiffe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Spiffe {
    type Err = SpiffeError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        Self::parse(uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(uri: &str, expected: &str) {
        let found = match Spiffe::parse(uri) {
            Ok(s) => format!("{} {} {}", s.trust_domain(), s.namespace(), s.service_account()),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected, "{uri}");
    }

    #[test]
    fn a_name_has_three_parts() {
        check("spiffe://cluster.local/ns/shop/sa/cart", "cluster.local shop cart");
    }

    #[test]
    fn another_scheme_is_refused() {
        check("https://td/ns/a/sa/b", "`https://td/ns/a/sa/b` does not begin with spiffe://");
    }

    #[test]
    fn another_path_is_refused() {
        for uri in
            ["spiffe://td", "spiffe://td/ns/a", "spiffe://td/ns/a/sa/b/c", "spiffe://td/sa/a/ns/b"]
        {
            let form =
                "is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>";
            check(uri, &format!("`{uri}` {form}"));
        }
    }

    #[test]
    fn an_empty_part_is_refused() {
        check("spiffe:///ns/a/sa/b", "the trust domain of `spiffe:///ns/a/sa/b` is empty");
        check("spiffe://td/ns//sa/b", "the namespace of `spiffe://td/ns//sa/b` is empty");
        check("spiffe://td/ns/a/sa/", "the service account of `spiffe://td/ns/a/sa/` is empty");
    }

    #[test]
    fn other_characters_are_refused() {
        check(
            "spiffe://td/ns/a/sa/b%20",
            "the service account of `spiffe://td/ns/a/sa/b%20` contains '%'",
        );
        check(
            "spiffe://td:1/ns/a/sa/b",
            "the trust domain of `spiffe://td:1/ns/a/sa/b` contains ':'",
        );
    }

    #[test]
    fn more_than_2048_bytes_are_refused() {
        let long = format!("spiffe://td/ns/a/sa/{}", "b".repeat(2048));
        check(&long, "the name has 2068 bytes, at most 2048 are allowed");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_and_survives_a_round_trip(text in "\\PC*") {
            if let Ok(name) = Spiffe::parse(&text) {
                proptest::prop_assert_eq!(name.to_string(), text);
            }
        }

        #[test]
        fn parts_come_back(td in "[a-z.]{1,20}", ns in "[a-z-]{1,20}", sa in "[a-z-]{1,20}") {
            let name = Spiffe::new(&td, &ns, &sa).unwrap();
            proptest::prop_assert_eq!((name.trust_domain(), name.namespace(), name.service_account()), (&*td, &*ns, &*sa));
        }
    }
}
