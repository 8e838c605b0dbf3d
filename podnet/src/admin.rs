//! The agent's HTTP endpoints: is it well, and what has it counted?

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tracing::{error, info};

use crate::error::Error;
use crate::metrics::Metrics;

/// Takes the address.
///
/// # Errors
/// [`Error::Listen`] if it is taken or not this machine's.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

/// Answers requests for as long as the agent runs.
///
/// `/metrics` is in the text format of OpenMetrics; `/healthz` is 503 until what was there at the start is
/// in the kernel; `/livez` is always 200.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    if let Ok(address) = listener.local_addr() {
        info!(%address, "metrics and health are served");
    }
    if let Err(error) = axum::serve(listener, router(metrics)).await {
        error!(%error, "metrics and health are served no more");
    }
}

fn router(metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/metrics", get(encode))
        .route("/healthz", get(health))
        .route("/livez", get("ok"))
        .with_state(metrics)
}

async fn encode(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPEN_METRICS)], metrics.encode())
}

async fn health(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    if metrics.is_ready() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "Services have not been read yet")
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: podnet\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn health_follows_the_agent() {
        let metrics = Arc::new(Metrics::new("a".to_owned(), PathBuf::from("/no/such/directory")));
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, metrics.clone()));
        assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 503 "));
        assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200 "));
        metrics.set_ready();
        let answer = ask(address, "/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok"), "{answer}");
        assert!(ask(address, "/metrics").await.contains("podnet_agent_info"));

        let taken = listen(address).await.unwrap_err().to_string();
        assert!(taken.contains(&address.to_string()) && taken.contains("--metrics-listen"), "{taken}");
    }
}
