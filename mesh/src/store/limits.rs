//! Limits that the control plane sets for connections: an extension of ours on workloads and services.
//!
//! In: `istio.workload.Extension` named `aquifer.io/limits`, a `google.protobuf.Struct`. Out: [`Limits`]. Other daemons
//! pass over it. Counting is the daemon's.

use std::{fmt, num::NonZeroU32, str::FromStr};

use prost::Message as _;
use prost_types::{Any, Struct, Value, value::Kind};
use proto::workload::Extension;
use serde::Serialize;

use super::DecodeError;
use crate::wire::Fault;

const NAME: &str = "aquifer.io/limits";
const STRUCT: &str = "type.googleapis.com/google.protobuf.Struct";
const MAX_CONNECTIONS: &str = "maxConnections";
const CONNECTION_RATE: &str = "connectionRate";
const CONNECTION_BURST: &str = "connectionBurst";

/// Limits for connections; none by default.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Limits {
    /// Connections that one node may have open to this destination.
    pub max_connections: Option<NonZeroU32>,
    /// New connections that one node takes from this source.
    pub connection_rate: Option<Rate>,
}

/// So many a second, and so many at once.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rate {
    /// How many a second, over a long time.
    pub per_second: NonZeroU32,
    /// How many at once after a pause.
    pub burst: NonZeroU32,
}

/// A text is no rate.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "expected connections a second, or `a second:at once`, whole numbers from 1: 100 or 100:200"
)]
pub struct BadRate;

impl FromStr for Rate {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, BadRate> {
        let (per_second, burst) = text.split_once(':').unwrap_or((text, text));
        let number = |text: &str| text.parse().map_err(|_| BadRate);
        Ok(Self { per_second: number(per_second)?, burst: number(burst)? })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.per_second, self.burst)
    }
}

impl Limits {
    /// The extension that says so; none if nothing is limited.
    pub fn extension(&self) -> Option<Extension> {
        let rate = self.connection_rate;
        let fields = [
            (MAX_CONNECTIONS, self.max_connections),
            (CONNECTION_RATE, rate.map(|rate| rate.per_second)),
            (CONNECTION_BURST, rate.map(|rate| rate.burst)),
        ];
        let value =
            |number: NonZeroU32| Value { kind: Some(Kind::NumberValue(number.get().into())) };
        let set =
            fields.into_iter().filter_map(|(key, number)| Some((key.to_owned(), value(number?))));
        let config = Struct { fields: set.collect() };
        if config.fields.is_empty() {
            return None;
        }
        let config = Any { type_url: STRUCT.to_owned(), value: config.encode_to_vec() };
        Some(Extension { name: NAME.to_owned(), config: Some(config) })
    }

    /// Reads the extension, if it is among those of a resource.
    pub(super) fn of(extensions: &[Extension]) -> Result<Self, DecodeError> {
        let Some(extension) = extensions.iter().find(|extension| extension.name == NAME) else {
            return Ok(Self::default());
        };
        let at = format!("extensions[{NAME}]");
        let config = extension
            .config
            .as_ref()
            .ok_or_else(|| DecodeError::new("config", Fault::Unset).within(&at))?;
        let malformed = || DecodeError::new("config", Fault::NoStruct).within(&at);
        if config.type_url != STRUCT {
            return Err(malformed());
        }
        let config = Struct::decode(&*config.value).map_err(|_| malformed())?;
        let number = |key: &str| match config.fields.get(key) {
            None => Ok(None),
            Some(value) => count(value)
                .map(Some)
                .map_err(|fault| DecodeError::new(format_args!("config.{key}"), fault).within(&at)),
        };
        let (per_second, burst) = (number(CONNECTION_RATE)?, number(CONNECTION_BURST)?);
        let connection_rate =
            per_second.map(|per_second| Rate { per_second, burst: burst.unwrap_or(per_second) });
        Ok(Self { max_connections: number(MAX_CONNECTIONS)?, connection_rate })
    }
}

fn count(value: &Value) -> Result<NonZeroU32, Fault> {
    // Through text, since a whole number of 32 bits is written without a fraction or an exponent.
    let Some(Kind::NumberValue(number)) = value.kind else { return Err(Fault::NoCount) };
    number.to_string().parse().map_err(|_| Fault::NoCount)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max: u32, rate: &str) -> Limits {
        Limits { max_connections: NonZeroU32::new(max), connection_rate: rate.parse().ok() }
    }

    #[test]
    fn limits_come_back_as_they_were_sent() {
        for limits in [limits(7, "100:200"), limits(u32::MAX, ""), limits(0, "5")] {
            assert_eq!(Limits::of(&limits.extension().into_iter().collect::<Vec<_>>()), Ok(limits));
        }
        assert_eq!(Limits::default().extension(), None);
    }

    #[test]
    fn a_bad_extension_is_refused_by_field() {
        let check = |key: &str, number: f64, expected: &str| {
            let value = Value { kind: Some(Kind::NumberValue(number)) };
            let config = Struct { fields: [(key.to_owned(), value)].into() };
            let config = Any { type_url: STRUCT.to_owned(), value: config.encode_to_vec() };
            let extension = Extension { name: NAME.to_owned(), config: Some(config) };
            assert_eq!(Limits::of(&[extension]).unwrap_err().to_string(), expected);
        };
        let no_count = "must be a whole number from 1 to 4294967295";
        for number in [0.0, -1.0, 1.5, 5e9, f64::NAN] {
            let path = "extensions[aquifer.io/limits].config.maxConnections";
            check("maxConnections", number, &format!("{path}: {no_count}"));
        }
        let extension = Extension { name: NAME.to_owned(), config: None };
        let error = Limits::of(std::slice::from_ref(&extension)).unwrap_err().to_string();
        assert_eq!(error, "extensions[aquifer.io/limits].config: has no value");
        let config = Some(Any { type_url: "x".to_owned(), value: vec![] });
        let error = Limits::of(&[Extension { config, ..extension }]).unwrap_err().to_string();
        assert_eq!(error, "extensions[aquifer.io/limits].config: is no google.protobuf.Struct");
        assert_eq!(
            Limits::of(&[Extension { name: "other".to_owned(), config: None }]),
            Ok(Limits::default())
        );
    }

    #[test]
    fn a_rate_is_one_number_or_two() {
        assert_eq!("5".parse::<Rate>().unwrap().to_string(), "5:5");
        assert_eq!("5:9".parse::<Rate>().unwrap().to_string(), "5:9");
        for bad in ["", "0", "5:0", "1.5", "5:", ":5", "a", "1:2:3"] {
            assert_eq!(bad.parse::<Rate>(), Err(BadRate), "{bad}");
        }
    }
}
