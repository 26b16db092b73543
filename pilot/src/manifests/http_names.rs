//! Names with a meaning in what is said about requests: of statuses, of the host, of claims.
//!
//! In: a name. Out: what it means.

/// What names of headers begin with that mean a claim of the request's token.
const CLAIMS: &str = "@request.auth.claims";

/// The names of gRPC's status codes, each at its number.
const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The number of a status of gRPC, by its name.
pub(crate) fn grpc_code(name: &str) -> Option<u32> {
    let code = GRPC_CODES.iter().position(|code| *code == name)?;
    u32::try_from(code).ok()
}

/// Whether the name means the host that a request is for.
pub(crate) fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

/// Whether the name of a header is meant to be that of a claim.
pub(super) fn is_claim(header: &str) -> bool {
    header.get(..CLAIMS.len()).is_some_and(|start| start.eq_ignore_ascii_case(CLAIMS))
}

/// The path of a claim, from `@request.auth.claims.a.b` or `@request.auth.claims[a][b]`.
pub(crate) fn claim(header: &str) -> Option<Vec<&str>> {
    let rest = is_claim(header).then(|| &header[CLAIMS.len()..])?;
    let path: Vec<&str> = if let Some(names) = rest.strip_prefix('.') {
        names.split('.').collect()
    } else {
        rest.strip_prefix('[')?.strip_suffix(']')?.split("][").collect()
    };
    path.iter().all(|name| !name.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_named_with_dots_or_brackets() {
        for (header, expected) in [
            ("@request.auth.claims.sub", Some(vec!["sub"])),
            ("@request.auth.claims.a.b", Some(vec!["a", "b"])),
            ("@request.auth.claims[a.b][c]", Some(vec!["a.b", "c"])),
            ("@Request.Auth.Claims.sub", Some(vec!["sub"])),
            ("@request.auth.claims", None),
            ("@request.auth.claims.", None),
            ("@request.auth.claims[a", None),
            ("x-claims", None),
        ] {
            assert_eq!(claim(header), expected, "{header}");
        }
    }
}
