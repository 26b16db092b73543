//! One HTTP request.
//!
//! In: a URL such as `http://127.0.0.1:15000` and a path. Out: the JSON that is answered, or why there is none.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

/// To connect, and for the answer to begin and end: a dump of 100,000 workloads takes a second.
const LIMIT: Duration = Duration::from_secs(30);

/// Asks for a page.
pub(crate) async fn get(url: &str, path: &str) -> anyhow::Result<Value> {
    let answer = timeout(LIMIT, fetch(url, path)).await;
    answer
        .with_context(|| format!("{url} does not answer within {} s", LIMIT.as_secs()))?
        .with_context(|| format!("asking {url}{}", path.split('?').next().unwrap_or_default()))
}

async fn fetch(url: &str, path: &str) -> anyhow::Result<Value> {
    let uri: Uri = url.parse().context("this is no URL")?;
    ensure!(uri.scheme_str() == Some("http"), "the URL must begin with http://");
    let authority = uri.authority().context("the URL has no host")?.as_str();
    let address = match uri.port() {
        Some(_) => authority.to_owned(),
        None => format!("{authority}:80"),
    };
    let tcp = TcpStream::connect(&address).await.context("connecting")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(format!("{}{path}", uri.path().trim_end_matches('/')))
        .header(header::HOST, authority)
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    let answer = serde_json::from_slice::<Value>(&body);
    if !status.is_success() {
        // Errors come as `{"error": "…"}` or as text.
        let text = String::from_utf8_lossy(&body);
        let reason = answer.ok().and_then(|answer| Some(answer.get("error")?.as_str()?.to_owned()));
        bail!("{status}: {}", reason.as_deref().unwrap_or(text.trim()));
    }
    answer.context("the answer is no JSON")
}

/// Makes text part of a query.
pub(crate) fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte);
    text.bytes().fold(String::new(), |mut all, byte| {
        if plain(byte) {
            all.push(char::from(byte));
        } else {
            all.push_str(&format!("%{byte:02X}"));
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Answers one request with `response` and says what came of it.
    async fn check(response: &'static str, expected: Result<Value, &str>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = tcp.read(&mut request).await.unwrap();
            tcp.write_all(response.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        let answer = get(&url, "/page?x=1").await.map_err(|error| format!("{error:#}"));
        let expected = expected.map_err(|reason| format!("asking {url}/page: {reason}"));
        assert_eq!(answer, expected);
        assert!(server.await.unwrap().starts_with("GET /page?x=1 HTTP/1.1\r\n"));
    }

    #[tokio::test]
    async fn an_answer_is_json_or_a_reason() {
        check("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", Ok(serde_json::json!({}))).await;
        let bad = "HTTP/1.1 400 Bad Request\r\ncontent-length: 15\r\n\r\n{\"error\":\"why\"}";
        check(bad, Err("400 Bad Request: why")).await;
        let missing = "HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\n\r\nno\n";
        check(missing, Err("404 Not Found: no")).await;
    }

    #[tokio::test]
    async fn what_is_no_http_url_is_refused() {
        for (url, reason) in [
            ("https://localhost", "asking https://localhost/x: the URL must begin with http://"),
            ("localhost:1", "asking localhost:1/x: the URL must begin with http://"),
        ] {
            assert_eq!(format!("{:#}", get(url, "/x").await.unwrap_err()), reason);
        }
    }

    #[test]
    fn a_question_may_contain_anything() {
        assert_eq!(escaped("shop/web"), "shop/web");
        assert_eq!(escaped("[fd00::1]:80"), "%5Bfd00::1%5D:80");
        assert_eq!(escaped("a&b=c d"), "a%26b%3Dc%20d");
    }
}
