//! Fetches keys, when [`Schedule`] says so.
//!
//! In: what is wanted, as it changes. Out: [`KeySets`], as they change. An answer is bounded in size and time; one that
//! is no set of keys counts as none.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{KeySets, Location, Schedule, check};

/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How large it may be.
const MOST_BYTES: usize = 1 << 20;
/// How many are asked at once.
const AT_ONCE: usize = 8;

/// Why keys were not had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("`{0}` is no http or https address")]
    Uri(String),
    #[error("no answer within {TIMEOUT:?}")]
    Timeout,
    #[error("asking: {0}")]
    Ask(String),
    #[error("answered with {0}")]
    Status(hyper::StatusCode),
    #[error("reading the answer: {0}")]
    Read(String),
    #[error("the answer is {0}")]
    Content(String),
}

/// Asks over HTTP and HTTPS, with the roots that the system trusts.
#[derive(Clone)]
pub(crate) struct Fetcher {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl Fetcher {
    /// Reads the system's roots.
    ///
    /// # Errors
    /// Why there are none.
    pub(crate) fn new() -> std::io::Result<Self> {
        let connector = HttpsConnectorBuilder::new().with_native_roots()?;
        let connector = connector.https_or_http().enable_http1().build();
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// The keys at a location.
    pub(crate) async fn fetch(&self, location: &Location) -> Result<Arc<str>, FetchError> {
        let first = self.text(&location.first_uri()).await?;
        let keys = match location {
            Location::Keys(_) => first,
            Location::Issuer(_) => self.text(&described(&first)?).await?,
        };
        check(&keys).map_err(FetchError::Content)?;
        Ok(keys.into())
    }

    async fn text(&self, uri: &str) -> Result<String, FetchError> {
        let wrong = || FetchError::Uri(uri.to_owned());
        let parsed: Uri = uri.parse().map_err(|_| wrong())?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) {
            return Err(wrong());
        }
        let answer = tokio::time::timeout(TIMEOUT, async {
            let response =
                self.client.get(parsed).await.map_err(|error| FetchError::Ask(chain(&error)))?;
            if response.status() != hyper::StatusCode::OK {
                return Err(FetchError::Status(response.status()));
            }
            let body = Limited::new(response.into_body(), MOST_BYTES).collect().await;
            Ok(body.map_err(|error| FetchError::Read(error.to_string()))?.to_bytes())
        });
        let bytes = answer.await.map_err(|_| FetchError::Timeout)??;
        String::from_utf8(bytes.into()).map_err(|_| FetchError::Content("not UTF-8".to_owned()))
    }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Where an issuer says its keys are.
fn described(text: &str) -> Result<String, FetchError> {
    let wrong = |reason: String| FetchError::Content(reason);
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| wrong(format!("no JSON: {error}")))?;
    let uri = value.get("jwks_uri").and_then(serde_json::Value::as_str);
    uri.map(str::to_owned).ok_or_else(|| wrong("without `jwks_uri`".to_owned()))
}

/// Fetches what is wanted until told to stop.
pub(crate) async fn run(
    fetcher: Fetcher,
    mut wanted: watch::Receiver<BTreeSet<Location>>,
    keys: watch::Sender<Arc<KeySets>>,
    stop: CancellationToken,
) {
    let mut schedule = Schedule::default();
    let mut fetches: JoinSet<(Location, Result<Arc<str>, FetchError>)> = JoinSet::new();
    schedule.want(wanted.borrow_and_update().clone(), Instant::now());
    loop {
        while fetches.len() < AT_ONCE {
            let Some(location) = schedule.take_due(Instant::now()) else { break };
            let fetcher = fetcher.clone();
            fetches.spawn(async move {
                let fetched = fetcher.fetch(&location).await;
                (location, fetched)
            });
        }
        let due = if fetches.len() < AT_ONCE { schedule.poll_timeout() } else { None };
        let sleep = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                schedule.want(wanted.borrow_and_update().clone(), Instant::now());
                keys.send_if_modified(|sets| forget(sets, &schedule));
            }
            Some(Ok((location, fetched))) = fetches.join_next() => {
                take(&mut schedule, &keys, &location, fetched);
            }
            () = sleep => {}
        }
    }
}

/// Drops the keys that nobody wants; that is no news to anybody.
fn forget(sets: &mut Arc<KeySets>, schedule: &Schedule) -> bool {
    Arc::make_mut(sets).retain(|location| schedule.wants(location));
    false
}

fn take(
    schedule: &mut Schedule,
    keys: &watch::Sender<Arc<KeySets>>,
    location: &Location,
    fetched: Result<Arc<str>, FetchError>,
) {
    let uri = location.first_uri();
    match fetched {
        Ok(text) => {
            schedule.handle_fetched(location, Instant::now());
            if schedule.wants(location)
                && keys.send_if_modified(|sets| Arc::make_mut(sets).insert(location.clone(), text))
            {
                info!(uri, "keys of an issuer fetched");
            }
        }
        Err(error) => {
            let wait = schedule.handle_failed(location, Instant::now());
            let held = keys.borrow().of(location).is_some();
            let effect = if held { "those had before stay" } else { "its tokens are refused" };
            warn!(uri, %error, ?wait, "keys of an issuer were not had: {effect}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Full;
    use hyper::{Request, Response, body::Incoming, service::service_fn};
    use hyper_util::rt::TokioIo;

    use super::*;

    const KEYS: &str = r#"{"keys":[{"kty":"oct","k":"AA"}]}"#;

    /// A server of keys; says where it is.
    async fn serve() -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let own = base.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let own = own.clone();
                let answer = service_fn(move |request: Request<Incoming>| {
                    let own = own.clone();
                    async move { Ok::<_, Infallible>(answer(&own, request.uri().path())) }
                });
                let builder = hyper::server::conn::http1::Builder::new();
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), answer));
            }
        });
        base
    }

    fn answer(own: &str, path: &str) -> Response<Full<Bytes>> {
        let (status, body) = match path {
            "/keys" => (200, KEYS.to_owned()),
            "/.well-known/openid-configuration" => {
                (200, format!(r#"{{"issuer":"x","jwks_uri":"{own}/keys"}}"#))
            }
            "/html" => (200, "<html>".to_owned()),
            "/none" => (200, r#"{"keys":[]}"#.to_owned()),
            "/large" => (200, "x".repeat(MOST_BYTES + 1)),
            _ => (404, String::new()),
        };
        Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap()
    }

    fn fetcher() -> Fetcher {
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        Fetcher::new().unwrap()
    }

    #[tokio::test]
    async fn keys_are_had_from_where_they_are_or_where_the_issuer_says() {
        let (base, fetcher) = (serve().await, fetcher());
        for location in [Location::Keys(format!("{base}/keys")), Location::Issuer(base.clone())] {
            assert_eq!(&*fetcher.fetch(&location).await.unwrap(), KEYS, "{location:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_set_of_keys_is_refused() {
        let (base, fetcher) = (serve().await, fetcher());
        for (path, expected) in [
            ("/html", "the answer is no JSON: expected value at line 1 column 1"),
            ("/none", "the answer is no key"),
            ("/gone", "answered with 404 Not Found"),
            ("/large", "reading the answer: length limit exceeded"),
        ] {
            let location = Location::Keys(format!("{base}{path}"));
            let error = fetcher.fetch(&location).await.unwrap_err();
            assert_eq!(error.to_string(), expected, "{path}");
        }
        let error = fetcher.fetch(&Location::Keys("ftp://a/b".to_owned())).await.unwrap_err();
        assert_eq!(error.to_string(), "`ftp://a/b` is no http or https address");
    }

    #[tokio::test]
    async fn keys_arrive_when_they_are_wanted() {
        let base = serve().await;
        let location = Location::Keys(format!("{base}/keys"));
        let (want, wanted) = watch::channel(BTreeSet::new());
        let (sender, mut keys) = watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(fetcher(), wanted, sender, stop.clone()));
        want.send_replace(BTreeSet::from([location.clone()]));
        let had = keys.wait_for(|sets: &Arc<KeySets>| sets.of(&location).is_some()).await.unwrap();
        assert_eq!(had.of(&location), Some(KEYS));
        drop(had);
        stop.cancel();
        running.await.unwrap();
    }
}
