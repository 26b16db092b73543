//! Lists and watches the objects of one resource for as long as pilot runs.
//!
//! In: a resource of the API server. Out: its events, each once and in order. A watch that breaks goes on where it
//! was; one whose place the server has forgotten (410) begins with a new list. Waits between attempts.

use std::pin::pin;

use kube::{
    Api, Client,
    core::ApiResource,
    runtime::watcher::{self, Error, Event, watcher},
};
use metrics::counter;
use tokio::time::sleep;
use tokio_stream::StreamExt;
use tracing::{debug, warn};

use super::{
    link::{Delay, Link},
    raw::Raw,
};

/// Hands every event to `take`; never ends.
pub(super) async fn watch(
    client: Client,
    resource: ApiResource,
    link: &Link,
    mut take: impl FnMut(Event<Raw>),
) {
    let mut delay = Delay::default();
    let mut said = String::new();
    loop {
        let api: Api<Raw> = Api::all_with(client.clone(), &resource);
        let mut events = pin!(watcher(api, watcher::Config::default()));
        while let Some(event) = events.next().await {
            let error = match event {
                Ok(event) => {
                    delay = Delay::default();
                    said.clear();
                    take(event);
                    continue;
                }
                Err(error) => error,
            };
            counter!("pilot_k8s_watch_errors", "type" => resource.kind.clone()).increment(1);
            let reason = chain(&error);
            match kind_of(&error) {
                Failure::Away => {
                    debug!(resource = %resource.plural, reason, "watch");
                    link.lost();
                }
                Failure::Forgotten => debug!(resource = %resource.plural, reason, "watch"),
                // Said once, however often it is refused.
                Failure::Refused if reason != said => {
                    warn!(resource = %resource.plural, reason, "the API server refuses a watch");
                    said = reason;
                }
                Failure::Refused => {}
            }
            link.up().await;
            sleep(delay.next()).await;
            if kind_of(&error) == Failure::Forgotten {
                break;
            }
        }
    }
}

/// What an error says about the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Failure {
    /// It did not answer.
    Away,
    /// It no longer knows the changes since then.
    Forgotten,
    /// It answered, and not with what was asked for.
    Refused,
}

fn kind_of(error: &Error) -> Failure {
    let status = match error {
        Error::WatchError(status) => status,
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchFailed(kube::Error::Api(status)) => status,
        Error::InitialListFailed(_) | Error::WatchStartFailed(_) | Error::WatchFailed(_) => {
            return Failure::Away;
        }
        Error::NoResourceVersion => return Failure::Refused,
    };
    if status.code == 410 { Failure::Forgotten } else { Failure::Refused }
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn an_answer_is_told_from_silence() {
        let answer = |code| Box::new(Status { code, ..Status::default() });
        let silence = || kube::Error::LinesCodecMaxLineLengthExceeded;
        for (error, expected) in [
            (Error::WatchError(answer(410)), Failure::Forgotten),
            (Error::WatchStartFailed(kube::Error::Api(answer(410))), Failure::Forgotten),
            (Error::InitialListFailed(kube::Error::Api(answer(403))), Failure::Refused),
            (Error::WatchFailed(silence()), Failure::Away),
            (Error::InitialListFailed(silence()), Failure::Away),
            (Error::NoResourceVersion, Failure::Refused),
        ] {
            assert_eq!(kind_of(&error), expected, "{error:?}");
        }
    }
}
