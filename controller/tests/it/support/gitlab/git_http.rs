//! Git over HTTP: checks the token as GitLab does, then lets `git http-backend` speak.

use std::process::Stdio;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use tokio::io::AsyncWriteExt as _;

use super::server::{Asked, Principal};
use super::state::{Route, Shared, Standing};

/// Answers one call of git's smart protocol.
pub(super) async fn answer(shared: &Arc<Shared>, route: Route, asked: &Asked) -> Response {
    let Some((path, verb)) = asked.path.trim_start_matches('/').split_once(".git/") else {
        return text(404, "Not found");
    };
    let (git_dir, public) = {
        let mut state = shared.state();
        match state.find(path) {
            Some(id) => {
                let project = state.project(id);
                (Some(project.git_dir.clone()), project.public)
            }
            None => (None, false),
        }
    };
    if let Some(refused) = refuse(route, asked, git_dir.is_some(), public) {
        return refused;
    }
    let Some(git_dir) = git_dir else {
        return text(404, "The project you were looking for could not be found.");
    };
    backend(&git_dir, verb, asked).await
}

fn refuse(route: Route, asked: &Asked, exists: bool, public: bool) -> Option<Response> {
    let pushing = route == Route::GitPush;
    match asked.principal {
        Principal::Anonymous if exists && public && !pushing => None,
        Principal::Anonymous => {
            let mut response = text(401, "HTTP Basic: Access denied. The provided password or token is incorrect.");
            response.headers_mut().insert("www-authenticate", HeaderValue::from_static("Basic realm=\"GitLab\""));
            Some(response)
        }
        Principal::Refused | Principal::Token(Standing::Expired | Standing::Revoked, _) => {
            Some(text(401, "HTTP Basic: Access denied. The provided password or token is incorrect."))
        }
        Principal::Token(Standing::Outsider, _) if !public => {
            Some(text(404, "The project you were looking for could not be found."))
        }
        Principal::Token(Standing::Guest, _) => Some(text(403, "You are not allowed to download code.")),
        Principal::Token(_, scope) if pushing && !scope.pushes() => {
            Some(text(403, "You are not allowed to push code to this project."))
        }
        Principal::Token(..) => None,
    }
}

async fn backend(git_dir: &std::path::Path, verb: &str, asked: &Asked) -> Response {
    let header = |name: &str| asked.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut child = tokio::process::Command::new("git")
        .arg("http-backend")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_PROJECT_ROOT", git_dir)
        .env("PATH_INFO", format!("/{verb}"))
        .env("REQUEST_METHOD", asked.method.as_str())
        .env("QUERY_STRING", &asked.raw_query)
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", asked.body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REMOTE_USER", "developer")
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("run git http-backend");
    let mut input = child.stdin.take().expect("its input is a pipe");
    let body = asked.body.clone();
    let feed = tokio::spawn(async move {
        // The program may end before it has read everything, which is for its answer to explain.
        let _ = input.write_all(&body).await;
    });
    let output = child.wait_with_output().await.expect("wait for git http-backend");
    feed.abort();
    parse(&output.stdout)
}

/// Turns a CGI answer into a response.
fn parse(output: &[u8]) -> Response {
    let (mut at, mut status, mut headers) = (0, 200, Vec::new());
    while let Some(length) = output[at..].windows(2).position(|pair| pair == b"\r\n") {
        let line = String::from_utf8_lossy(&output[at..at + length]).into_owned();
        at += length + 2;
        let Some((name, value)) = line.split_once(": ") else { break };
        if name.eq_ignore_ascii_case("status") {
            status = value.split(' ').next().and_then(|code| code.parse().ok()).unwrap_or(500);
        } else {
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
    }
    let mut response = Response::new(Body::from(output[at..].to_vec()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn text(status: u16, text: &str) -> Response {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a real status");
    response
}
