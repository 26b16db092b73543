//! How one setting is read: its text, what it is parsed to, and what is wrong with it.
//!
//! In: the environment. Out: a value, or its default and one more [`ConfigError`]. Which settings there are is told elsewhere.

use std::{fmt::Display, num::NonZeroU32, str::FromStr, time::Duration};

use super::{ConfigError, Reader};

impl Reader<'_> {
    pub(super) fn optional(&self, name: &str) -> Option<String> {
        self.environment.get(name).filter(|value| !value.is_empty()).cloned()
    }

    pub(super) fn text(&self, name: &str, default: &str) -> String {
        self.optional(name).unwrap_or_else(|| default.to_owned())
    }

    pub(super) fn url(&self, name: &str, default: &str) -> String {
        let address = self.text(name, default);
        if address.contains("://") { address } else { format!("https://{address}") }
    }

    pub(super) fn parsed_if_set<T: FromStr<Err: Display>>(
        &mut self,
        name: &'static str,
    ) -> Option<T> {
        let value = self.optional(name)?;
        self.check(name, &value, value.parse())
    }

    pub(super) fn parsed<T: FromStr<Err: Display>>(&mut self, name: &'static str, default: T) -> T {
        match self.optional(name) {
            None => default,
            Some(value) => self.check(name, &value, value.parse()).unwrap_or(default),
        }
    }

    /// A comma list.
    pub(super) fn list<T: FromStr<Err: Display>>(
        &mut self,
        name: &'static str,
        default: &str,
    ) -> Vec<T> {
        let text = match self.environment.get(name) {
            Some(text) => text.clone(),
            None => default.to_owned(),
        };
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.filter_map(|part| self.check(name, part, part.parse())).collect()
    }

    pub(super) fn bounded(
        &mut self,
        name: &'static str,
        default: NonZeroU32,
        limit: u32,
    ) -> NonZeroU32 {
        let value = self.parsed(name, default);
        if value.get() > limit {
            self.refuse(name, value, &format!("at most {limit} is allowed"));
        }
        value
    }

    pub(super) fn duration(&mut self, name: &'static str, default: Duration) -> Duration {
        match self.optional(name) {
            None => default,
            Some(value) => self.check(name, &value, parse_duration(&value)).unwrap_or(default),
        }
    }

    pub(super) fn check<T, E: Display>(
        &mut self,
        name: &'static str,
        value: &str,
        result: Result<T, E>,
    ) -> Option<T> {
        result.map_err(|reason| self.refuse(name, value, &reason.to_string())).ok()
    }

    pub(super) fn refuse(&mut self, name: &'static str, value: impl Display, reason: &str) {
        self.errors.push(ConfigError { name, value: value.to_string(), reason: reason.to_owned() });
    }
}

/// Reads Go's form of a duration as far as settings use it: one whole number and one unit (`ms`, `s`, `m`, `h`).
fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "expected a whole number and a unit: 500ms, 10s, 5m or 24h";
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or(FORM)?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| FORM)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(FORM),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or("too long")
}
