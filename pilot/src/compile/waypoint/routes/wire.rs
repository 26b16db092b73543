//! Envoy's wrappers, written shortly.
//!
//! In: plain values. Out: the messages Envoy wants them in. Decides nothing.

use prost::{Message, Name};
use proto::{
    envoy::envoy::{
        config::core::v3::RuntimeFractionalPercent,
        r#type::{
            matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
            v3::{FractionalPercent, fractional_percent::DenominatorType},
        },
    },
    google::{Any, BoolValue, Duration, UInt32Value},
};

use crate::manifests::{self, networking::StringMatch};

pub(super) fn flag(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

pub(super) fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(super) fn duration(of: manifests::Duration) -> Duration {
    Duration {
        // Parsing has a bound of 292 years.
        seconds: of.0.as_secs().try_into().unwrap_or(i64::MAX),
        nanos: of.0.subsec_nanos().try_into().unwrap_or(0),
    }
}

pub(super) fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{}", M::full_name()),
        value: message.encode_to_vec(),
    }
}

pub(super) fn regex(text: &str) -> RegexMatcher {
    RegexMatcher { regex: text.to_owned(), engine_type: None }
}

/// Percent with a fraction, in millionths of the whole.
pub(super) fn percent(value: f64) -> FractionalPercent {
    let millionths = (value * 10_000.0).round().clamp(0.0, 1_000_000.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to what fits; a NaN becomes 0"
    )]
    let numerator = millionths as u32;
    FractionalPercent { numerator, denominator: DenominatorType::Million.into() }
}

/// Whole percent.
pub(super) fn hundredths(numerator: u32) -> FractionalPercent {
    FractionalPercent { numerator, denominator: DenominatorType::Hundred.into() }
}

pub(super) fn always(value: FractionalPercent) -> Option<RuntimeFractionalPercent> {
    Some(RuntimeFractionalPercent { default_value: Some(value), runtime_key: String::new() })
}

/// What a value must be; nothing if any value will do.
pub(super) fn string_match(of: &StringMatch) -> Option<StringMatcher> {
    let pattern = match of {
        StringMatch { exact: Some(exact), .. } => MatchPattern::Exact(exact.clone()),
        StringMatch { prefix: Some(prefix), .. } => MatchPattern::Prefix(prefix.clone()),
        // `*` is no regular expression, but it is what users write for presence.
        StringMatch { regex: Some(text), .. } if text == "*" => return None,
        StringMatch { regex: Some(text), .. } => MatchPattern::SafeRegex(regex(text)),
        StringMatch { .. } => return None,
    };
    Some(StringMatcher { ignore_case: false, match_pattern: Some(pattern) })
}
