//! The keys of token issuers that publish them.
//!
//! In: where keys are to be had, as RequestAuthentications say. Out: [`KeySets`], immutable, which the compiler takes.
//! `Schedule` decides when to fetch what and is told the time; `fetch` does it. Keys that were had once are kept when
//! they cannot be had again: an issuer's outage is not its users'.

mod fetch;
mod schedule;

use std::{collections::BTreeMap, sync::Arc};

use crate::manifests::{JwtRule, Manifests};

pub(crate) use fetch::{Fetcher, run};
pub(crate) use schedule::Schedule;

/// Keys by where they were had.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeySets {
    by_location: BTreeMap<Location, Arc<str>>,
}

/// Where keys are to be had.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Location {
    /// The keys themselves.
    Keys(String),
    /// The issuer's description of itself, which says where the keys are.
    Issuer(String),
}

/// Where a rule has its keys from.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Source<'a> {
    /// The rule says them.
    Inline(&'a str),
    /// They are to be fetched.
    Fetched(Location),
}

impl<'a> Source<'a> {
    pub(crate) fn of(rule: &'a JwtRule) -> Self {
        if !rule.jwks.is_empty() {
            Self::Inline(&rule.jwks)
        } else if rule.jwks_uri.is_empty() {
            Self::Fetched(Location::Issuer(rule.issuer.clone()))
        } else {
            Self::Fetched(Location::Keys(rule.jwks_uri.clone()))
        }
    }
}

impl Location {
    /// What is asked first.
    pub(crate) fn first_uri(&self) -> String {
        match self {
            Self::Keys(uri) => uri.clone(),
            Self::Issuer(issuer) => {
                format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))
            }
        }
    }
}

impl KeySets {
    /// The keys had from there, if they were had.
    pub(crate) fn of(&self, location: &Location) -> Option<&str> {
        self.by_location.get(location).map(AsRef::as_ref)
    }

    /// Takes keys in; says whether they are others than before.
    pub(crate) fn insert(&mut self, location: Location, keys: Arc<str>) -> bool {
        self.by_location.get(&location) != Some(&keys) && {
            self.by_location.insert(location, keys);
            true
        }
    }

    /// Forgets what nobody asks for.
    pub(crate) fn retain(&mut self, wanted: impl Fn(&Location) -> bool) {
        self.by_location.retain(|location, _| wanted(location));
    }
}

/// Everything that the manifests want fetched.
pub(crate) fn wanted(manifests: &Manifests) -> std::collections::BTreeSet<Location> {
    let rules = manifests.request_authentications.iter().flat_map(|policy| &policy.spec.jwt_rules);
    rules
        .filter_map(|rule| match Source::of(rule) {
            Source::Inline(_) => None,
            Source::Fetched(location) => Some(location),
        })
        .collect()
}

/// Whether a text is a set of keys as RFC 7517 has it, with at least one key.
///
/// # Errors
/// What it is not.
pub(crate) fn check(text: &str) -> Result<(), String> {
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))?;
    let keys = value.get("keys").and_then(serde_json::Value::as_array);
    let keys = keys.ok_or("no list `keys`")?;
    if keys.is_empty() {
        return Err("no key".to_owned());
    }
    let typed = |key: &serde_json::Value| key.get("kty").is_some_and(serde_json::Value::is_string);
    match keys.iter().position(|key| !typed(key)) {
        Some(i) => Err(format!("keys[{i}] has no `kty`")),
        None => Ok(()),
    }
}
