//! The little HTTP/1.1 that the daemon's own ports need.
//!
//! In: a listener and a function from a [`Request`] to a [`Response`]. Out: served connections. Requests have a query
//! and no body: a body that is sent is not read, and its connection is closed. Whoever accepts gzip gets long answers so;
//! very long ones are packed [`aside`].

use std::{convert::Infallible, io::Write, pin::Pin, sync::Arc, time::Duration};

use flate2::{Compression, write::GzEncoder};
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, StatusCode, Uri,
    body::{Body, Bytes, Incoming},
    header::{
        ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, VARY,
    },
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::sending::Sending;

/// How long a client may take to send a request's head, also between two requests.
const HEADER_LIMIT: Duration = Duration::from_secs(2);
/// Bytes of a request's head.
const HEADER_BYTES: usize = 8 * 1024;
/// Connections served at once on one port; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// After an accept that failed, which happens when descriptors run out: not at once again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Shorter answers are not worth compressing.
const SHORT: usize = 1024;
/// Longer answers take milliseconds to compress.
const LONG: u64 = 256 * 1024;

/// A request without its body.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    query: Vec<(String, String)>,
    headers: HeaderMap,
}

pub(super) type Response = hyper::Response<Full<Bytes>>;
/// An answer that may take its time.
pub(super) type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;

impl Request {
    fn new(method: Method, uri: &Uri, headers: HeaderMap) -> Self {
        let query = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let query = query.map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        });
        Self { method, path: uri.path().to_owned(), query: query.collect(), headers }
    }

    /// What the client would like to get; empty if it does not say.
    pub(super) fn accept(&self) -> &str {
        self.header(ACCEPT)
    }

    fn accepts_gzip(&self) -> bool {
        let mut codings = self.header(ACCEPT_ENCODING).split(',');
        codings.any(|coding| match coding.split_once(';') {
            None => coding.trim() == "gzip",
            Some((name, weight)) => name.trim() == "gzip" && weight.trim() != "q=0",
        })
    }

    fn header(&self, name: HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The first value of a query parameter; empty if it was given without one.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    #[cfg(test)]
    pub(super) fn of(method: Method, uri: &str) -> Self {
        Self::new(method, &uri.parse().unwrap(), HeaderMap::new())
    }
}

/// Plain text.
pub(super) fn text(status: StatusCode, text: impl Into<String>) -> Response {
    respond(status, "text/plain; charset=utf-8", text.into().into())
}

/// A page.
pub(super) fn html(text: &'static str) -> Response {
    respond(StatusCode::OK, "text/html; charset=utf-8", text.into())
}

/// A value as JSON, indented for people.
pub(super) fn json(status: StatusCode, value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => respond(status, "application/json", body.into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("writing JSON: {error}\n")),
    }
}

/// Any body.
pub(super) fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Response {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Makes an answer that takes a while on a thread of its own, so that this one goes on serving the node. One at a time:
/// operators get no more than one core. Whoever does not wait for the answer does not end the work.
pub(super) async fn aside(make: impl FnOnce() -> Response + Send + 'static) -> Response {
    static AT_ONCE: Semaphore = Semaphore::const_new(1);
    let turn = AT_ONCE.acquire().await.expect("the semaphore is never closed");
    let made = tokio::task::spawn_blocking(move || {
        let response = make();
        drop(turn);
        response
    });
    made.await.unwrap_or_else(|error| {
        text(StatusCode::INTERNAL_SERVER_ERROR, format!("making the answer: {error}\n"))
    })
}

async fn packed(response: Response) -> Response {
    match response.size_hint().exact() {
        Some(0..=LONG) => compressed(response),
        Some(_) | None => aside(move || compressed(response)).await,
    }
}

/// The same answer in fewer bytes, for whoever accepts gzip.
fn compressed(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    let plain = body.into_inner().unwrap_or_default();
    if plain.len() < SHORT || head.headers.contains_key(CONTENT_ENCODING) {
        return Response::from_parts(head, Full::new(plain));
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::fast());
    match encoder.write_all(&plain).and_then(|()| encoder.finish()) {
        Ok(packed) => {
            head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            head.headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
            Response::from_parts(head, Full::new(packed.into()))
        }
        Err(_) => Response::from_parts(head, Full::new(plain)),
    }
}

/// Serves connections until `stop` is cancelled, then ends those in progress after their current request.
pub(super) async fn serve(
    listener: TcpListener,
    answer: impl Fn(Arc<Request>) -> Answer + Clone + Send + Sync + 'static,
    stop: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    while let Some(accepted) = stop.run_until_cancelled(accept(&listener, &room)).await {
        let (tcp, permit) = accepted;
        let (answer, stop) = (answer.clone(), stop.clone());
        connections.spawn(async move {
            converse(tcp, answer, stop).await;
            drop(permit);
        });
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    let permit = Arc::clone(room).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => return (tcp, permit),
            Err(error) => {
                tracing::warn!(%error, "accepting an operator's connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(
    tcp: TcpStream,
    answer: impl Fn(Arc<Request>) -> Answer,
    stop: CancellationToken,
) {
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (head, _) = request.into_parts();
        let request = Arc::new(Request::new(head.method, &head.uri, head.headers));
        let answer = answer(Arc::clone(&request));
        async move {
            let response = answer.await;
            let accepts_gzip = request.accepts_gzip();
            Ok::<_, Infallible>(if accepts_gzip { packed(response).await } else { response })
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(Sending::new(tcp)), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an operator's connection ended");
    }
}

/// Undoes percent-encoding; what is not valid stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [high, low, after @ ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push(high * 16 + low);
                    rest = after;
                }
                (Some(_) | None, _) => bytes.push(b'%'),
            },
            (b'+', _) => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn digit(hex: u8) -> Option<u8> {
    char::from(hex).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use std::{io::Read, net::SocketAddr};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn parameters_are_found_decoded() {
        let request =
            Request::of(Method::GET, "/explain?from=shop%2Fweb&to=%5bfd00::1%5D:80&flag&empty=");
        assert_eq!(request.path, "/explain");
        assert_eq!(request.parameter("from"), Some("shop/web"));
        assert_eq!(request.parameter("to"), Some("[fd00::1]:80"));
        assert_eq!(request.parameter("flag"), Some(""));
        assert_eq!(request.parameter("other"), None);
    }

    /// Where `/long` is answered by `body`, and everything else shortly.
    async fn serving(body: Bytes) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = move |request: Arc<Request>| -> Answer {
            let body = if request.path == "/long" { body.clone() } else { Bytes::from("short") };
            Box::pin(std::future::ready(respond(StatusCode::OK, "text/plain", body)))
        };
        tokio::spawn(serve(listener, answer, CancellationToken::new()));
        address
    }

    async fn ask(to: SocketAddr, head: &str) -> TcpStream {
        let mut tcp = TcpStream::connect(to).await.unwrap();
        tcp.write_all(head.as_bytes()).await.unwrap();
        tcp
    }

    #[tokio::test]
    async fn an_answer_packed_aside_is_the_same() {
        let body: Bytes = b"0123456789abcdef".repeat(100_000).into();
        let to = serving(body.clone()).await;
        let head = "GET /long HTTP/1.0\r\naccept-encoding: gzip\r\n\r\n";
        let mut answer = Vec::new();
        ask(to, head).await.read_to_end(&mut answer).await.unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&answer[end..]).read_to_end(&mut plain).unwrap();
        assert!(plain == body);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_take_nothing_leave_room_for_others() {
        let to = serving(vec![0; 16 << 20].into()).await;
        let mut stalled = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut tcp = ask(to, "GET /long HTTP/1.1\r\nhost: ztunnel\r\n\r\n").await;
            tcp.read_u8().await.unwrap();
            stalled.push(tcp);
        }
        let mut answer = String::new();
        ask(to, "GET / HTTP/1.0\r\n\r\n").await.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("short"), "{answer}");
    }

    #[test]
    fn what_is_no_percent_encoding_stays() {
        for (text, decoded) in
            [("100%", "100%"), ("%zz", "%zz"), ("%4", "%4"), ("%ff", "\u{fffd}"), ("a+b", "a b")]
        {
            assert_eq!(decode(text), decoded, "{text}");
        }
    }
}
