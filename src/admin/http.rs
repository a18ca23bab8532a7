//! Answers requests. Whoever asks gets what is known at the moment: no request waits for a server.

use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tower_service::Service as _;

use super::board::Board;
use super::export;
use super::page;
use super::status::{Status, status};

/// Connections at a time; more wait until one ends.
const CONNECTIONS_MAX: usize = 64;
/// A client that sends its request more slowly is cut off.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// So is one that reads the answer more slowly. Others that keep a connection that long connect anew.
const CONNECTION_MAX: Duration = Duration::from_secs(300);
/// After a connection that could not be accepted: most often file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves for ever.
pub async fn serve(listener: StdListener, board: Arc<Board>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("the admin endpoint can't be served: {error}");
            return;
        }
    };
    let (router, room) = (router(board), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            let _ = timeout(CONNECTION_MAX, answer(stream, router)).await;
            drop(permit);
        });
    }
}

async fn answer(stream: TcpStream, router: Router) {
    let call = |request: Request<Incoming>| router.clone().call(request);
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_MAX)
        .serve_connection(TokioIo::new(stream), service_fn(call));
    // A client that went away.
    let _ = served.await;
}

/// Only GET, and with it HEAD.
fn router(board: Arc<Board>) -> Router {
    Router::new()
        .route("/", get(show))
        .route("/status", get(tell))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .layer(map_response(guarded))
        .with_state(board)
}

async fn show() -> Response {
    let html = [(CONTENT_TYPE, "text/html; charset=utf-8")];
    (html, page::HTML).into_response()
}

async fn tell(State(board): State<Arc<Board>>) -> Json<Status> {
    let (totals, now_ms) = (board.metrics.totals(), board.metrics.now_ms());
    Json(status(
        &board.about,
        board.health(),
        totals,
        now_ms,
        board.seen(),
    ))
}

async fn metrics(State(board): State<Arc<Board>>) -> Response {
    match export::text(&board) {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn livez(State(board): State<Arc<Board>>) -> Response {
    probed("live", board.health().0.live)
}

async fn readyz(State(board): State<Arc<Board>>) -> Response {
    probed("ready", board.health().0.ready)
}

fn probed(good: &str, answer: Result<(), String>) -> Response {
    match answer {
        Ok(()) => format!("{good}\n").into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// No answer is kept, guessed at, framed, or loads anything from elsewhere.
async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, page::POLICY.clone());
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
