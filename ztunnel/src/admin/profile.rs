//! Profiles in pprof's format: where processor time goes, what holds memory.
//!
//! In: `/debug/pprof/…` and its parameters, as Istio's ztunnel has them. Out: a gzipped profile for `go tool pprof` or
//! any other reader, with the names of functions. A processor profile samples the whole process while it is taken, one at
//! a time; a heap profile has what was allocated since profiling was activated.

use std::{num::NonZeroU16, str::FromStr, time::Duration};

use hyper::{Method, StatusCode};
use jemalloc_pprof::PROF_CTL;
use mappings::MAPPINGS;
use pprof::{ProfilerGuard, ProfilerGuardBuilder};
use pprof_util::{StackProfile, WeightedStack};
use tokio::task::spawn_blocking;

use super::http::{Answer, Request, Response, respond, text};

/// How long a processor profile takes, in seconds, and at most.
const SECONDS: (u16, u16) = (10, 300);
/// Samples per second of processor time, and at most.
const FREQUENCY: (u16, u16) = (100, 1000);

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
enum ProfileError {
    #[error("`{name}` must be a whole number from 1 to {most}, not `{value}`")]
    Parameter { name: &'static str, value: String, most: u16 },
    #[error("`activate` must be true or false")]
    Activate,
    #[error("sampling did not start, perhaps because another profile is being taken: {source}")]
    Sampling { source: pprof::Error },
    #[error("this build's allocator takes no samples")]
    Unsupported,
    #[error("heap profiling is not active: POST /debug/pprof/heap/profiling?activate=true")]
    Inactive,
    #[error("taking the profile: {error}")]
    Failed { error: String },
}

/// The answer to a request for a profile, if it is one.
pub(super) fn requested(request: &Request) -> Option<Answer> {
    let answer: Answer = match (&request.method, request.path.as_str()) {
        (&Method::GET, "/debug/pprof/profile") => {
            let asked = parameter(request, "seconds", SECONDS)
                .and_then(|seconds| Ok((seconds, parameter(request, "frequency", FREQUENCY)?)));
            Box::pin(async move {
                let taken = match asked {
                    Ok((seconds, frequency)) => processor(seconds, frequency).await,
                    Err(error) => Err(error),
                };
                profile(taken)
            })
        }
        (&Method::GET, "/debug/pprof/heap") => Box::pin(async { profile(heap().await) }),
        (&(Method::GET | Method::POST), "/debug/pprof/heap/profiling") => {
            let activate = request.parameter("activate").map(bool::from_str);
            Box::pin(async move {
                let switched = match activate {
                    Some(Ok(activate)) => switch(activate).await,
                    Some(Err(_)) | None => Err(ProfileError::Activate),
                };
                match switched {
                    Ok(now) => text(StatusCode::OK, now),
                    Err(error) => refused(&error),
                }
            })
        }
        (_, _) => return None,
    };
    Some(answer)
}

fn parameter(
    request: &Request,
    name: &'static str,
    (default, most): (u16, u16),
) -> Result<NonZeroU16, ProfileError> {
    let Some(value) = request.parameter(name) else {
        return Ok(NonZeroU16::new(default).expect("the defaults are not zero"));
    };
    let number = value.parse().ok().filter(|number: &NonZeroU16| number.get() <= most);
    number.ok_or_else(|| ProfileError::Parameter { name, value: value.to_owned(), most })
}

async fn processor(seconds: NonZeroU16, frequency: NonZeroU16) -> Result<Vec<u8>, ProfileError> {
    let guard = ProfilerGuardBuilder::default()
        .frequency(frequency.get().into())
        // Unwinding from inside these can deadlock.
        .blocklist(&["libc", "libgcc", "pthread", "vdso"])
        .build()
        .map_err(|source| ProfileError::Sampling { source })?;
    tokio::time::sleep(Duration::from_secs(seconds.get().into())).await;
    // Names are looked up in the binary, which takes a while.
    let nanoseconds = 1e9 / f64::from(frequency.get());
    let encoded = spawn_blocking(move || encode(&guard, nanoseconds)).await;
    encoded.unwrap_or_else(|error| Err(ProfileError::Failed { error: error.to_string() }))
}

/// `each` is how many nanoseconds one sample stands for.
fn encode(guard: &ProfilerGuard<'_>, each: f64) -> Result<Vec<u8>, ProfileError> {
    let report = guard.report().build_unresolved();
    let report = report.map_err(|error| ProfileError::Failed { error: error.to_string() })?;
    let mut profile = StackProfile::default();
    for mapping in MAPPINGS.iter().flatten() {
        profile.push_mapping(mapping.clone());
    }
    for (stack, count) in report.data {
        // The outermost first. Unwinding that loses its way ends at 0.
        let addrs = stack.frames.iter().rev().map(|frame| frame.ip() as usize);
        let addrs = addrs.filter(|address| *address != 0).collect();
        profile.push_stack(WeightedStack { addrs, weight: count as f64 * each }, None);
    }
    Ok(profile.to_pprof(("cpu", "nanoseconds"), ("cpu", "nanoseconds"), None))
}

async fn heap() -> Result<Vec<u8>, ProfileError> {
    let allocator = PROF_CTL.as_ref().ok_or(ProfileError::Unsupported)?;
    let dumped = spawn_blocking(|| {
        let mut allocator = allocator.blocking_lock();
        if !allocator.activated() {
            return Err(ProfileError::Inactive);
        }
        allocator.dump_pprof().map_err(|error| ProfileError::Failed { error: format!("{error:#}") })
    });
    dumped.await.unwrap_or_else(|error| Err(ProfileError::Failed { error: error.to_string() }))
}

/// Says what is so after it.
async fn switch(activate: bool) -> Result<&'static str, ProfileError> {
    let mut allocator = PROF_CTL.as_ref().ok_or(ProfileError::Unsupported)?.lock().await;
    let switched = if activate { allocator.activate() } else { allocator.deactivate() };
    switched.map_err(|error| ProfileError::Failed { error: error.to_string() })?;
    Ok(if activate { "heap profiling is active\n" } else { "heap profiling is not active\n" })
}

fn profile(taken: Result<Vec<u8>, ProfileError>) -> Response {
    match taken {
        Ok(profile) => respond(StatusCode::OK, "application/octet-stream", profile.into()),
        Err(error) => refused(&error),
    }
}

fn refused(error: &ProfileError) -> Response {
    let status = match error {
        ProfileError::Parameter { .. } | ProfileError::Activate => StatusCode::BAD_REQUEST,
        ProfileError::Sampling { .. } | ProfileError::Inactive => StatusCode::CONFLICT,
        ProfileError::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ProfileError::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    text(status, format!("{error}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_its_default_or_a_number_within_bounds() {
        let check = |query: &str, expected: Result<u16, &str>| {
            let request = Request::of(Method::GET, &format!("/debug/pprof/profile{query}"));
            let found = parameter(&request, "seconds", SECONDS);
            let found = found.map(NonZeroU16::get).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{query}");
        };
        check("", Ok(10));
        check("?seconds=300", Ok(300));
        check("?seconds=301", Err("`seconds` must be a whole number from 1 to 300, not `301`"));
        check("?seconds=0", Err("`seconds` must be a whole number from 1 to 300, not `0`"));
        check("?seconds=", Err("`seconds` must be a whole number from 1 to 300, not ``"));
    }

    #[test]
    fn other_pages_are_not_profiles() {
        for (method, path) in [
            (Method::GET, "/debug/pprof"),
            (Method::POST, "/debug/pprof/profile"),
            (Method::GET, "/config_dump"),
        ] {
            assert!(requested(&Request::of(method, path)).is_none(), "{path}");
        }
    }
}
