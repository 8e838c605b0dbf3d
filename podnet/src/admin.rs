//! The agent's own HTTP servers: those that kube-proxy has, at the same ports, with the same answers.
//!
//! | server | path | answer |
//! |---|---|---|
//! | health, `0.0.0.0:10256` | `/healthz` | whether podnet keeps up and the node stays, as JSON; 200 or 503 |
//! | | `/livez` | whether podnet keeps up, as JSON; 200 or 503 |
//! | metrics, `127.0.0.1:10249` | `/metrics` | metrics, in the text format that the client prefers |
//! | | `/healthz` | `ok` |
//! | | `/readyz` | 503 until what was there at the start is in the kernel; podnet's own |
//! | | `/proxyMode` | `ebpf` |

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};
use tracing::{error, info};

use crate::error::Error;
use crate::health::{Health, Moment, Report};
use crate::metrics::{Format, Metrics};

/// The name of podnet's only mode. kube-proxy names one of its own here, none of which would be true; its
/// end-to-end tests want an answer, and only look for `iptables` in it to test what that mode does.
const PROXY_MODE: &str = "ebpf";

/// The headers of kube-proxy's answers in plain text.
const PLAIN: [(HeaderName, &str); 2] =
    [(CONTENT_TYPE, "text/plain; charset=utf-8"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
/// The headers of kube-proxy's answers in JSON.
pub(crate) const JSON: [(HeaderName, &str); 2] =
    [(CONTENT_TYPE, "application/json"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 128;

/// Takes the address for the server that `flag` is about.
///
/// # Errors
/// [`Error::Listen`] if it is taken or not this machine's.
pub fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, Error> {
    bind_all(address).map_err(|source| Error::Listen { address, flag, source })
}

/// Listens at `address`; if that is all addresses of a family, then at those of the other one too, as Go's
/// servers do.
fn bind_all(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip().is_unspecified() {
        let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, address.port(), 0, 0);
        match bind(any.into(), false) {
            // A kernel without IPv6.
            Err(error) if no_such_family(&error) => {}
            result => return result,
        }
    }
    bind(address, true)
}

/// Listens at `address`. `only_v6` says whether IPv4 is left out where it is all addresses of IPv6.
pub(crate) fn bind(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() {
        let socket = TcpSocket::new_v6()?;
        setsockopt(&socket, sockopt::Ipv6V6Only, &only_v6)?;
        socket
    } else {
        TcpSocket::new_v4()?
    };
    // Connections of an agent before this one may still be closing.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whether the kernel lacks the family of the address.
pub(crate) fn no_such_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) || error.kind() == io::ErrorKind::AddrNotAvailable
}

/// Answers requests for as long as the agent runs.
pub async fn serve(listener: TcpListener, what: &'static str, router: Router) {
    if let Ok(address) = listener.local_addr() {
        info!(%address, "{what} is served");
    }
    if let Err(error) = axum::serve(listener, router).await {
        error!(%error, "{what} is served no more");
    }
}

/// The server of `/healthz` and `/livez`.
pub fn health_router(health: Arc<Health>, metrics: Arc<Metrics>) -> Router {
    Router::new().route("/healthz", any(healthz)).route("/livez", any(livez)).with_state((health, metrics))
}

type Healths = State<(Arc<Health>, Arc<Metrics>)>;

async fn healthz(State((health, metrics)): Healths) -> Response {
    let (code, answer) = told(health.healthz(Moment::now()));
    metrics.kube_proxy.answered_healthz(code.as_u16());
    answer
}

async fn livez(State((health, metrics)): Healths) -> Response {
    let (code, answer) = told(health.livez(Moment::now()));
    metrics.kube_proxy.answered_livez(code.as_u16());
    answer
}

fn told((healthy, report): (bool, Report)) -> (StatusCode, Response) {
    let (code, body) = (status(healthy), serde_json::to_string(&report).unwrap_or_default());
    (code, (code, JSON, body).into_response())
}

/// The code by which load balancers tell good news from bad.
pub(crate) fn status(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// The server of `/metrics`.
pub fn metrics_router(metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/metrics", get(encode))
        .route("/healthz", any(async || plain(StatusCode::OK, "ok")))
        .route("/readyz", any(ready))
        .route("/proxyMode", any(async || plain(StatusCode::OK, PROXY_MODE)))
        .with_state(metrics)
}

async fn encode(State(metrics): State<Arc<Metrics>>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept.unwrap_or_default());
    ([(CONTENT_TYPE, format.content_type())], metrics.encode(format))
}

async fn ready(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    if metrics.is_ready() {
        plain(StatusCode::OK, "ok")
    } else {
        plain(StatusCode::SERVICE_UNAVAILABLE, "Services have not been read yet")
    }
}

fn plain(code: StatusCode, text: &'static str) -> impl IntoResponse {
    (code, PLAIN, text)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;
    use std::time::Instant;

    use podnet_common::wire::Family;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::health::{FAMILIES, TIMEOUT};

    /// What a server at `address` answers to a request of `path`, headers and all.
    pub(crate) async fn ask(address: SocketAddr, path: &str) -> String {
        ask_for(address, path, "*/*").await
    }

    async fn ask_for(address: SocketAddr, path: &str, accept: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: podnet\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Whether an answer has a code, headers and a body.
    #[track_caller]
    pub(crate) fn check(answer: &str, code: u16, headers: &[&str], body: &str) {
        let (head, told) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{answer}");
        let head = head.to_ascii_lowercase();
        for header in headers {
            assert!(head.lines().any(|line| line == header.to_ascii_lowercase()), "no {header} in {answer}");
        }
        assert_eq!(told, body);
    }

    fn metrics() -> Arc<Metrics> {
        Arc::new(Metrics::new("a".to_owned(), PathBuf::from("/no/such/directory")))
    }

    fn start(router: Router) -> SocketAddr {
        let listener = listen("127.0.0.1:0".parse().unwrap(), "--here").unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, "this", router));
        address
    }

    const JSON_HEADERS: [&str; 2] = ["Content-Type: application/json", "X-Content-Type-Options: nosniff"];
    const PLAIN_HEADERS: [&str; 2] =
        ["Content-Type: text/plain; charset=utf-8", "X-Content-Type-Options: nosniff"];

    #[tokio::test]
    async fn health_is_told_as_kube_proxy_tells_it() {
        let (health, metrics) = (Arc::new(Health::default()), metrics());
        let address = start(health_router(health.clone(), metrics.clone()));
        let body = |answer: &str| -> serde_json::Value {
            serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
        };
        for (family, _) in FAMILIES {
            health.updated(family, Moment::now().time);
        }
        let answer = ask(address, "/healthz").await;
        check(&answer, 200, &JSON_HEADERS, answer.split_once("\r\n\r\n").unwrap().1);
        let told = body(&answer);
        assert_eq!((&told["healthy"], &told["nodeEligible"]), (&true.into(), &true.into()), "{told}");
        assert_eq!(told["lastUpdated"], told["currentTime"]);
        assert_eq!(told["status"]["IPv4"]["healthy"], true);
        health.set_node_eligible(false);
        assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 503 "));
        let answer = ask(address, "/livez").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && body(&answer).get("nodeEligible").is_none());
        health.queued(Family::V6, Instant::now() - TIMEOUT);
        let answer = ask(address, "/livez").await;
        check(&answer, 503, &JSON_HEADERS, answer.split_once("\r\n\r\n").unwrap().1);
        assert_eq!(body(&answer)["status"]["IPv6"]["healthy"], false);
        assert!(ask(address, "/metrics").await.starts_with("HTTP/1.1 404 "));
        let text = metrics.encode(Format::Prometheus);
        for line in
            ["healthz_total{code=\"200\"} 1", "healthz_total{code=\"503\"} 1", "livez_total{code=\"503\"} 1"]
        {
            assert!(text.contains(&format!("kubeproxy_proxy_{line}")), "no {line} in:\n{text}");
        }
    }

    #[tokio::test]
    async fn the_metrics_server_answers_as_kube_proxys_does() {
        let metrics = metrics();
        let address = start(metrics_router(metrics.clone()));
        check(&ask(address, "/healthz").await, 200, &PLAIN_HEADERS, "ok");
        check(&ask(address, "/proxyMode").await, 200, &PLAIN_HEADERS, "ebpf");
        check(&ask(address, "/readyz").await, 503, &PLAIN_HEADERS, "Services have not been read yet");
        metrics.set_ready();
        check(&ask(address, "/readyz").await, 200, &PLAIN_HEADERS, "ok");
        let answer = ask(address, "/metrics").await.to_ascii_lowercase();
        assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
        assert!(answer.contains("\npodnet_agent_info{") && answer.contains("\nkubeproxy_sync_proxy_rules_"));
        let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
        let answer = ask_for(address, "/metrics", accept).await.to_ascii_lowercase();
        assert!(answer.contains("content-type: application/openmetrics-text; "), "{answer}");
        assert!(answer.ends_with("# eof\n"));
    }

    #[tokio::test]
    async fn all_addresses_are_those_of_both_families() {
        let listener = listen("0.0.0.0:0".parse().unwrap(), "--here").unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(serve(listener, "this", metrics_router(metrics())));
        check(&ask(([127, 0, 0, 1], port).into(), "/healthz").await, 200, &PLAIN_HEADERS, "ok");
        if bind("[::1]:0".parse().unwrap(), true).is_ok() {
            check(&ask((Ipv6Addr::LOCALHOST, port).into(), "/healthz").await, 200, &PLAIN_HEADERS, "ok");
        }
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_named_with_its_flag() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), "--here").unwrap();
        let address = listener.local_addr().unwrap();
        let taken = listen(address, "--there").unwrap_err().to_string();
        assert!(taken.contains(&address.to_string()) && taken.contains("--there"), "{taken}");
    }
}
