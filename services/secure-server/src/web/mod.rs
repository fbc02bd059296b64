//! The operator's page of one server, read-only: what is healthy, how much budget is left, and until
//! when. Also the measurements for Prometheus.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the page; its style, script and icon are the only other files, all in this program |
//! | `/api/overview` | what the page shows, as JSON ([`overview`]) |
//! | `/metrics` | measurements in the Prometheus text format |
//! | `/healthz` | 200 while the process lives |
//! | `/readyz` | 200 while both other servers are connected, else 503 |
//!
//! On a loopback address the page is plain HTTP for everybody on the machine; the request must name
//! a loopback host, so that no foreign web page reaches it under a name of its own. On any other
//! address it is served over TLS with the server's certificate, and only to operators that
//! `identities.operators` lists.

mod access;
mod alerts;
mod collect;
pub mod overview;
mod serve;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use tokio::sync::Mutex;

use crate::metrics;
use collect::Source;
pub use serve::Site;

/// How long an overview is given out before the next is made, however many people look at it.
const FRESH: Duration = Duration::from_secs(1);

const TEXT: &str = "text/plain; charset=utf-8";

/// The files of the page: path, type and content.
const FILES: [(&str, &str, &str); 5] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("/charts.js", "text/javascript; charset=utf-8", include_str!("page/charts.js")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("page/page.js")),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

/// The page's own files, without any data.
pub fn files() -> Router {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, content)| {
        router.route(path, get(move || async move { answer(StatusCode::OK, kind, content) }))
    })
}

/// Everything that is served.
fn router(source: Source) -> Router {
    let live = Router::new()
        .route("/api/overview", get(overview_json))
        .route("/metrics", get(prometheus))
        .route("/healthz", get(|| async { answer(StatusCode::OK, TEXT, "ok\n") }))
        .route("/readyz", get(ready))
        .with_state(Arc::new(Live { source: Arc::new(source), cached: Mutex::default() }));
    files().merge(live).fallback(|| async {
        answer(StatusCode::NOT_FOUND, TEXT, "not found; the page is at /, its data at /api/overview\n")
    })
}

struct Live {
    source: Arc<Source>,
    cached: Mutex<Option<(Instant, Bytes)>>,
}

fn answer(status: StatusCode, kind: &'static str, content: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static(kind))], content.into()).into_response()
}

async fn overview_json(State(live): State<Arc<Live>>) -> Response {
    // Held while the overview is made: whoever comes meanwhile gets the same one.
    let mut cached = live.cached.lock().await;
    if let Some((_, json)) = cached.as_ref().filter(|(made, _)| made.elapsed() < FRESH) {
        return answer(StatusCode::OK, "application/json", json.clone());
    }
    let source = Arc::clone(&live.source);
    let made = tokio::task::spawn_blocking(move || {
        let overview = source.overview().map_err(|error| error.to_string())?;
        serde_json::to_vec(&overview).map_err(|error| error.to_string())
    });
    match made.await.map_err(|error| error.to_string()).and_then(|made| made) {
        Ok(json) => {
            let json = Bytes::from(json);
            *cached = Some((Instant::now(), json.clone()));
            answer(StatusCode::OK, "application/json", json)
        }
        Err(error) => {
            tracing::error!(%error, "the operator's page has no data");
            answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("no overview: {error}\n"))
        }
    }
}

async fn prometheus(State(live): State<Arc<Live>>) -> Response {
    let context = Arc::clone(live.source.context());
    match tokio::task::spawn_blocking(move || metrics::render(&context)).await {
        Ok(text) => answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("no measurements: {error}\n")),
    }
}

async fn ready(State(live): State<Arc<Live>>) -> Response {
    let context = live.source.context();
    let peers = [context.here.next(), context.here.previous()];
    let missing: Vec<_> = peers
        .into_iter()
        .zip(context.lane.connected())
        .filter(|(_, connected)| !connected)
        .map(|(peer, _)| peer.to_string())
        .collect();
    if missing.is_empty() {
        return answer(StatusCode::OK, TEXT, "ready\n");
    }
    let text = format!("not connected to {}\n", missing.join(" and "));
    answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
}
