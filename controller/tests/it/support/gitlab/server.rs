//! One call: read it whole, say what kind it is, apply a fault if one waits, act, write the ledger, answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use base64::Engine as _;

use super::connection::{CuttableListener, Scissors};
use super::state::{Call, Route, Scope, Shared, Standing};
use super::{Fault, api, git_http};

/// The longest body that is taken.
const BODY_LIMIT_BYTES: usize = 256 << 20;

/// Serves until the runtime goes.
pub(super) async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("give the listener to tokio");
    let router = Router::new().fallback(handle).with_state(shared);
    let service = router.into_make_service_with_connect_info::<Scissors>();
    axum::serve(CuttableListener(listener), service).await.expect("serve the stand-in");
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Principal {
    /// No credential came.
    Anonymous,
    /// A credential that is not known.
    Refused,
    /// A known token.
    Token(Standing, Scope),
}

/// A call that was read.
pub(super) struct Asked {
    pub(super) method: Method,
    /// Path segments, decoded.
    pub(super) segments: Vec<String>,
    /// The path as it came.
    pub(super) path: String,
    /// The query as it came.
    pub(super) raw_query: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) principal: Principal,
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(scissors): ConnectInfo<Scissors>,
    request: Request,
) -> Response {
    let asked = read(&shared, request).await;
    // On a task of its own: what a caller asked for happens even if it hangs up meanwhile.
    tokio::spawn(settle(shared, scissors, asked)).await.expect("the stand-in does not panic")
}

async fn settle(shared: Arc<Shared>, scissors: Scissors, asked: Asked) -> Response {
    let route = route_of(&asked);
    let fault = shared.state().take_fault(route);
    let (response, cut) = match fault {
        Some(Fault::Status { code, retry_after, .. }) => (failure(&asked, code, retry_after), false),
        Some(Fault::Nonsense { body, .. }) => (Response::new(Body::from(body)), false),
        Some(Fault::Delay { delay, .. }) => {
            wait(delay).await;
            (act(&shared, route, &asked).await, false)
        }
        Some(Fault::AnswerLost { .. }) => (act(&shared, route, &asked).await, true),
        Some(Fault::ActedThenStatus { code, .. }) => {
            act(&shared, route, &asked).await;
            (failure(&asked, code, None), false)
        }
        None => (act(&shared, route, &asked).await, false),
    };
    let status = if cut { 0 } else { response.status().as_u16() };
    shared.state().ledger.push(call(&asked, route, status));
    if cut {
        scissors.cut();
    }
    with_limits(response)
}

async fn wait(delay: Duration) {
    // sleep: a delay that a test asked for
    tokio::time::sleep(delay).await;
}

async fn act(shared: &Arc<Shared>, route: Route, asked: &Asked) -> Response {
    match route {
        Route::GitFetch | Route::GitPush => git_http::answer(shared, route, asked).await,
        _ => api::answer(shared, route, asked),
    }
}

async fn read(shared: &Shared, request: Request) -> Asked {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, BODY_LIMIT_BYTES).await.unwrap_or_default();
    let raw_query = parts.uri.query().unwrap_or_default().to_owned();
    let query = raw_query.split('&').filter_map(|pair| pair.split_once('=')).map(|(name, value)| {
        let value = value.replace('+', " ");
        (decode(name), decode(&value))
    });
    Asked {
        method: parts.method,
        segments: parts.uri.path().split('/').skip(1).map(decode).collect(),
        path: parts.uri.path().to_owned(),
        query: query.collect(),
        raw_query: raw_query.clone(),
        principal: principal_of(shared, &parts.headers),
        headers: parts.headers,
        body,
    }
}

/// Finds the token in the headers: `PRIVATE-TOKEN`, `Authorization: Bearer`, or the password of `Authorization: Basic`.
fn principal_of(shared: &Shared, headers: &HeaderMap) -> Principal {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let authorization = header("authorization");
    let basic = authorization.and_then(|value| value.strip_prefix("Basic ")).and_then(|encoded| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        text.split_once(':').map(|(_, password)| password.to_owned())
    });
    let bearer = authorization.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned);
    let token = header("private-token").map(str::to_owned).or(bearer).or(basic);
    match token {
        None if authorization.is_none() => Principal::Anonymous,
        None => Principal::Refused,
        Some(text) => match shared.state().find_token(&text) {
            Some((standing, scope)) => Principal::Token(standing, scope),
            None => Principal::Refused,
        },
    }
}

fn route_of(asked: &Asked) -> Route {
    let segments: Vec<&str> = asked.segments.iter().map(String::as_str).collect();
    let method = asked.method.as_str();
    match (method, segments.as_slice()) {
        ("GET", ["api", "v4", "version"]) => Route::Version,
        ("GET", ["api", "v4", "personal_access_tokens", "self"]) => Route::OwnToken,
        ("GET", ["api", "v4", "groups", _, "variables"]) => Route::GroupVariables,
        ("GET", ["api", "v4", "admin", "ci", "variables"]) => Route::InstanceVariables,
        (_, ["api", "v4", "projects", _, rest @ ..]) => match (method, rest) {
            ("GET", []) => Route::Project,
            ("GET", ["repository", "branches", _]) => Route::Branch,
            ("GET", ["repository", "files", _] | ["repository", "files", _, "raw"]) => Route::File,
            ("GET", ["ci", "lint"]) => Route::Lint,
            ("GET", ["variables"]) => Route::Variables,
            ("GET", ["merge_requests"]) => Route::MergeRequests,
            ("POST", ["merge_requests"]) => Route::CreateMergeRequest,
            ("GET", ["merge_requests", _]) => Route::MergeRequest,
            ("PUT", ["merge_requests", _]) => Route::UpdateMergeRequest,
            ("GET", ["issues", _]) => Route::Issue,
            ("GET", ["issues", _, "notes"]) => Route::Notes,
            ("POST", ["issues", _, "notes"]) => Route::CreateNote,
            _ => Route::Unknown,
        },
        ("GET", [.., "info", "refs"]) => match asked.query.get("service").map(String::as_str) {
            Some("git-receive-pack") => Route::GitPush,
            _ => Route::GitFetch,
        },
        ("POST", [.., "git-upload-pack"]) => Route::GitFetch,
        ("POST", [.., "git-receive-pack"]) => Route::GitPush,
        _ => Route::Unknown,
    }
}

fn call(asked: &Asked, route: Route, status: u16) -> Call {
    let path = match asked.raw_query.as_str() {
        "" => asked.path.clone(),
        query => format!("{}?{query}", asked.path),
    };
    let body = match route {
        Route::GitFetch | Route::GitPush => format!("{} bytes", asked.body.len()),
        _ => String::from_utf8_lossy(&asked.body).into_owned(),
    };
    let principal = match asked.principal {
        Principal::Anonymous => "anonymous".to_owned(),
        Principal::Refused => "refused".to_owned(),
        Principal::Token(standing, scope) => format!("{standing:?} {scope:?}"),
    };
    Call { route, method: asked.method.to_string(), path, body, principal, status }
}

fn failure(asked: &Asked, code: u16, retry_after: Option<u64>) -> Response {
    let text = match code {
        429 => "Retry later\n".to_owned(),
        500.. => format!("<html><head><title>{code}</title></head><body>GitLab is not responding</body></html>"),
        _ => format!(r#"{{"message":"{code} by order of the test"}}"#),
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::from_u16(code).expect("a fault names a real status");
    if response.status().is_redirection() {
        let moved = format!("/moved{}?{}", asked.path, asked.raw_query).parse().expect("a path is a header value");
        response.headers_mut().insert("location", moved);
    }
    if let Some(seconds) = retry_after {
        response.headers_mut().insert("retry-after", seconds.into());
    }
    response
}

/// Adds the headers that GitLab's rate limiter puts on its answers.
fn with_limits(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert("ratelimit-limit", 2_000.into());
    headers.insert("ratelimit-observed", 1.into());
    headers.insert("ratelimit-remaining", 1_999.into());
    headers.insert("ratelimit-reset", 1_800_000_000u64.into());
    headers.insert("ratelimit-name", axum::http::HeaderValue::from_static("throttle_authenticated_api"));
    response
}

/// Undoes percent-encoding.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 3;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}
