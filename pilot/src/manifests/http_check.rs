//! Limits on what is said about requests, shared by VirtualServices and the Gateway API's routes.
//!
//! In: names, values and patterns. Out: why a proxy could not use one, if so. Reports nothing itself.

use regex::Regex;

use super::Duration;

/// Longest regular expression that is taken.
const MAX_REGEX_BYTES: usize = 1024;

/// Conditions for another attempt that Envoy knows.
const RETRY_CONDITIONS: [&str; 17] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
    "per-try-timeout",
];

/// What may stand between two `%` of a header's value, besides everything that begins with one of [`FAMILIES`].
const COMMANDS: [&str; 47] = [
    "ACCESS_LOG_TYPE",
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "CEL",
    "CLUSTER_METADATA",
    "COALESCE",
    "COMMON_DURATION",
    "CONNECTION_ID",
    "CONNECTION_TERMINATION_DETAILS",
    "CUSTOM_FLAGS",
    "DURATION",
    "DYNAMIC_METADATA",
    "EMIT_TIME",
    "ENVIRONMENT",
    "FILTER_CHAIN_NAME",
    "FILTER_STATE",
    "GRPC_STATUS",
    "GRPC_STATUS_NUMBER",
    "HOSTNAME",
    "LOCAL_REPLY_BODY",
    "METADATA",
    "PATH",
    "PER_REQUEST_STATE",
    "PROTOCOL",
    "QUERY_PARAM",
    "QUERY_PARAMS",
    "REQ",
    "REQUESTED_SERVER_NAME",
    "REQUEST_DURATION",
    "REQUEST_HEADER",
    "REQUEST_HEADERS_BYTES",
    "REQUEST_TX_DURATION",
    "RESP",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "RESPONSE_DURATION",
    "RESPONSE_FLAGS",
    "RESPONSE_FLAGS_LONG",
    "RESPONSE_TX_DURATION",
    "ROUTE_NAME",
    "START_TIME",
    "START_TIME_LOCAL",
    "STREAM_ID",
    "TLS_JA3_FINGERPRINT",
    "TRACE_ID",
    "UNIQUE_ID",
    "VIRTUAL_CLUSTER_NAME",
];

const FAMILIES: [&str; 4] = ["DOWNSTREAM_", "UPSTREAM_", "RESPONSE_TRAILERS_", "RESPONSE_HEADERS_"];

/// Why a regular expression cannot be used.
pub(super) fn regex_fault(text: &str) -> Option<String> {
    if text.len() > MAX_REGEX_BYTES {
        return Some(format!("{} bytes, at most {MAX_REGEX_BYTES} are allowed", text.len()));
    }
    // What the parser says has several lines: the last one tells the reason.
    let error = Regex::new(text).err()?.to_string();
    let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
    Some(format!("`{text}` is no regular expression: {reason}"))
}

/// RFC 9110 §5.6.2.
pub(super) fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Why a name cannot be that of a header.
pub(super) fn header_name_fault(name: &str) -> Option<String> {
    (!is_token(name)).then(|| format!("`{name}` is no header name"))
}

/// Why a value cannot be written into a header: `%` begins a command of Envoy's, and `%%` is a `%`.
pub(super) fn header_value_fault(value: &str) -> Option<String> {
    if value.bytes().any(|b| b < b' ' && b != b'\t' || b == 0x7f) {
        return Some(format!("`{}` has control characters", value.escape_debug()));
    }
    let mut rest = value;
    while let Some(start) = rest.find('%') {
        let after = &rest[start + 1..];
        if let Some(next) = after.strip_prefix('%') {
            rest = next;
            continue;
        }
        match command(after) {
            Ok(next) => rest = next,
            Err(reason) => return Some(format!("`{value}`: {reason}")),
        }
    }
    None
}

/// What comes after a command and its `%`.
fn command(text: &str) -> Result<&str, String> {
    let end = text.find(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_');
    let (name, mut rest) = text.split_at(end.unwrap_or(text.len()));
    let known = COMMANDS.contains(&name) || FAMILIES.iter().any(|family| name.starts_with(family));
    if !known {
        return Err(format!("there is no command `{name}` (write `%%` for a `%`)"));
    }
    if let Some(arguments) = rest.strip_prefix('(') {
        rest = arguments.split_once(')').ok_or("a `(` is not closed")?.1;
    }
    if let Some(length) = rest.strip_prefix(':') {
        let end = length.find(|c: char| !c.is_ascii_digit()).unwrap_or(length.len());
        if end == 0 {
            return Err("a `:` without a length".to_owned());
        }
        rest = &length[end..];
    }
    rest.strip_prefix('%').ok_or_else(|| format!("`%{name}` is not closed by a `%`"))
}

/// Why something is no list of conditions for another attempt.
pub(super) fn retry_on_fault(text: &str) -> Option<String> {
    let mut parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let wrong = parts.find(|part| {
        let is_code = part.parse::<u16>().is_ok_and(|code| (100..600).contains(&code));
        !is_code && !RETRY_CONDITIONS.contains(part)
    })?;
    Some(format!("`{wrong}` is neither a condition nor a status code"))
}

/// Why a percentage is none.
pub(super) fn percent_fault(value: f64) -> Option<String> {
    (!(0.0..=100.0).contains(&value)).then(|| format!("{value} is not from 0 to 100"))
}

/// Why a span of time cannot be a limit.
pub(super) fn duration_fault(of: Duration) -> Option<String> {
    if of.0.as_millis() < 1 {
        Some("less than a millisecond".to_owned())
    } else {
        (!of.0.subsec_nanos().is_multiple_of(1_000_000))
            .then(|| "not a whole number of milliseconds".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_format_strings() {
        for (value, expected) in [
            ("", None),
            ("plain", None),
            ("100%%", None),
            ("%HOSTNAME%", None),
            ("%REQ(x-a?:PATH):20%/%DOWNSTREAM_REMOTE_ADDRESS%", None),
            ("%START_TIME(%Y-%m)%", None),
            ("100%", Some("`100%`: there is no command `` (write `%%` for a `%`)")),
            (
                "%NO_SUCH%",
                Some("`%NO_SUCH%`: there is no command `NO_SUCH` (write `%%` for a `%`)"),
            ),
            ("%REQ(x-a%", Some("`%REQ(x-a%`: a `(` is not closed")),
            ("%HOSTNAME", Some("`%HOSTNAME`: `%HOSTNAME` is not closed by a `%`")),
            ("%REQ(x):%", Some("`%REQ(x):%`: a `:` without a length")),
            ("a\r\nb", Some("`a\\r\\nb` has control characters")),
        ] {
            assert_eq!(header_value_fault(value).as_deref(), expected, "{value}");
        }
    }

    #[test]
    fn regular_expressions_are_short_and_need_no_backtracking() {
        for (text, expected) in [
            ("^/v[0-9]+/.*$", None),
            ("(", Some("`(` is no regular expression: unclosed group")),
            (
                "(?=a)",
                Some(
                    "`(?=a)` is no regular expression: look-around, including look-ahead and \
                     look-behind, is not supported",
                ),
            ),
        ] {
            assert_eq!(regex_fault(text).as_deref(), expected, "{text}");
        }
        let long = "a".repeat(1025);
        assert_eq!(regex_fault(&long).as_deref(), Some("1025 bytes, at most 1024 are allowed"));
    }

    #[test]
    fn conditions_for_a_retry_are_known_or_status_codes() {
        for (text, expected) in [
            ("", None),
            ("5xx, connect-failure,503", None),
            ("5xx,no-such", Some("`no-such` is neither a condition nor a status code")),
            ("700", Some("`700` is neither a condition nor a status code")),
        ] {
            assert_eq!(retry_on_fault(text).as_deref(), expected, "{text}");
        }
    }
}
