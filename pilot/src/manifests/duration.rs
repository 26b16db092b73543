//! Spans of time as users write them.
//!
//! In: `1h30m`, `1.5s`, `250ms`: what Go's parser takes, which is what Istio's and the Gateway API's resources are
//! checked by. Out: a [`Duration`]. Negative spans are refused: no field of any resource takes one.

use std::{borrow::Cow, fmt, time};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of time.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Duration(pub time::Duration);

impl Duration {
    /// Parses a sequence of decimal numbers with units, such as `1h`, `1.5s` or `2m30s`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest == "0" {
            return Some(Self::default());
        }
        let mut nanoseconds = 0_f64;
        let mut parts = 0;
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let (number, after) = rest.split_at(end);
            let units = after.find(|c: char| c.is_ascii_digit() || c == '.');
            let (unit, after) = after.split_at(units.unwrap_or(after.len()));
            nanoseconds += number.parse::<f64>().ok()? * unit_nanoseconds(unit)?;
            parts += 1;
            rest = after;
        }
        // A Go duration ends at 292 years.
        let fits = parts > 0 && nanoseconds < 9.2e18;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "digits only, and checked against the bound"
        )]
        fits.then(|| Self(time::Duration::from_nanos(nanoseconds.round() as u64)))
    }
}

fn unit_nanoseconds(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1.0,
        "us" | "µs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        "h" => 3600e9,
        _ => return None,
    })
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(format!("`{text}` is no duration such as 250ms, 1.5s or 1h"))
        })
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0.as_secs_f64())
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }

    fn inline_schema() -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, milliseconds) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("250ms", Some(250)),
            ("1.5s", Some(1500)),
            ("1h", Some(3_600_000)),
            ("2m30s", Some(150_000)),
            (".5s", Some(500)),
            ("", None),
            ("5", None),
            ("-1s", None),
            ("1 s", None),
            ("1d", None),
            ("1.2.3s", None),
            ("s", None),
            ("99999999999h", None),
        ] {
            let expected = milliseconds.map(|ms| Duration(time::Duration::from_millis(ms)));
            assert_eq!(Duration::parse(text), expected, "{text}");
        }
    }
}
