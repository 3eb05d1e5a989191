//! Files of web servers, by GET: what symbol servers have.

use aws_smithy_http_client::{Connector, tls};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorSettings};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use std::time::Duration;

/// Times that a server may lead on to another address.
const REDIRECTS: usize = 5;
/// For a connection, for the beginning of an answer, and for all of it.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(30);
const ALL: Duration = Duration::from_secs(300);

/// A client of web servers.
#[derive(Debug)]
pub struct Web {
    connector: Connector,
}

impl Default for Web {
    fn default() -> Self {
        let settings = HttpConnectorSettings::builder()
            .connect_timeout(CONNECT)
            .read_timeout(ANSWER)
            .build();
        let ring = tls::rustls_provider::CryptoMode::Ring;
        let connector = Connector::builder()
            .connector_settings(settings)
            .tls_provider(tls::Provider::Rustls(ring))
            .build();
        Self { connector }
    }
}

/// The address that an answer leads on to; `None` if it is none that may be followed.
fn onward(from: &str, to: &str) -> Option<String> {
    let (scheme, rest) = from.split_once("://")?;
    let host = rest.split('/').next()?;
    let url = match to {
        path if path.starts_with('/') && !path.starts_with("//") => {
            format!("{scheme}://{host}{path}")
        }
        url => url.to_owned(),
    };
    // Never from what is encrypted to what is not.
    let ok = url.starts_with("https://") || (url.starts_with("http://") && scheme == "http");
    ok.then_some(url)
}

impl Web {
    /// The file at a URL, of at most `max` bytes; `None` where the server has none. The error says what the server or the way to it
    /// said.
    pub async fn get(&self, url: &str, max: u64) -> Result<Option<Vec<u8>>, String> {
        let got = tokio::time::timeout(ALL, self.follow(url, max)).await;
        got.unwrap_or_else(|_| Err(format!("no answer in {} s", ALL.as_secs())))
            .map_err(|e| format!("{url}: {e}"))
    }

    async fn follow(&self, url: &str, max: u64) -> Result<Option<Vec<u8>>, String> {
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS {
            let mut request = HttpRequest::new(SdkBody::empty());
            request.set_uri(url.as_str()).map_err(|e| e.to_string())?;
            let answer = self.connector.call(request).await;
            let answer = answer.map_err(|e| {
                // What happened is the innermost.
                let mut last: &dyn std::error::Error = &e;
                while let Some(inner) = last.source() {
                    last = inner;
                }
                last.to_string()
            })?;
            match answer.status().as_u16() {
                200 => {}
                404 | 410 => return Ok(None),
                301 | 302 | 303 | 307 | 308 => {
                    let to = answer
                        .headers()
                        .get("location")
                        .and_then(|to| onward(&url, to));
                    url = to.ok_or("the server leads on to nowhere that may be followed")?;
                    continue;
                }
                other => return Err(format!("the server answered {other}")),
            }
            let (mut body, mut out) = (ByteStream::new(answer.into_body()), Vec::new());
            while let Some(part) = body.try_next().await.map_err(|e| e.to_string())? {
                if (out.len() + part.len()) as u64 > max {
                    return Err(format!("more than {max} bytes"));
                }
                out.extend_from_slice(&part);
            }
            return Ok(Some(out));
        }
        Err(format!("the server leads on more than {REDIRECTS} times"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A server that gives these answers, one for each request, by its address.
    async fn server(answers: Vec<String>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let at = format!("http://{}", listener.local_addr().expect("address"));
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            for a in answers {
                let (mut s, _) = listener.accept().await.expect("client");
                let mut request = vec![0; 4096];
                let n = s.read(&mut request).await.expect("request");
                let text = String::from_utf8_lossy(&request[..n]).into_owned();
                asked.push(text.lines().next().unwrap_or_default().to_owned());
                s.write_all(a.as_bytes()).await.expect("answered");
            }
            asked
        });
        (at, asked)
    }

    fn answer(status: &str, header: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{header}\r\n{body}",
            body.len()
        )
    }

    #[tokio::test]
    async fn files_are_had_also_where_a_server_leads_on() {
        let (at, asked) = server(vec![
            answer("302 Found", "Location: /other/x.pdb\r\n", ""),
            answer("200 OK", "", "the file"),
            answer("404 Not Found", "", "no"),
            answer("500 Oh", "", "no"),
            answer("200 OK", "", "too long"),
        ])
        .await;
        let web = Web::default();
        let url = format!("{at}/x.pdb/1/x.pdb");
        let got = web.get(&url, 100).await.expect("answer");
        assert_eq!(got.as_deref(), Some(&b"the file"[..]));
        assert_eq!(web.get(&url, 100).await.expect("answer"), None);
        assert!(web.get(&url, 100).await.expect_err("500").contains("500"));
        assert!(
            web.get(&url, 4)
                .await
                .expect_err("long")
                .contains("more than 4")
        );
        let asked = asked.await.expect("server");
        assert_eq!(asked[0], "GET /x.pdb/1/x.pdb HTTP/1.1");
        assert_eq!(asked[1], "GET /other/x.pdb HTTP/1.1");
        let e = web.get(&url, 100).await.expect_err("nobody listens");
        assert!(e.contains(&url), "{e}");
    }

    #[test]
    fn no_way_leads_from_what_is_encrypted_to_what_is_not() {
        let on = |to| onward("https://a/b", to);
        assert_eq!(on("https://c/d").as_deref(), Some("https://c/d"));
        assert_eq!(on("/d").as_deref(), Some("https://a/d"));
        assert_eq!(on("http://c/d"), None);
        assert_eq!(on("file:///etc/passwd"), None);
        assert_eq!(
            onward("http://a/b", "http://c/d").as_deref(),
            Some("http://c/d")
        );
    }
}
