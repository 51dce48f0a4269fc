//! A git server on loopback: `git http-backend` behind a login, and it remembers what it was sent.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::process::Command;

pub(crate) struct GitServer {
    pub(crate) address: SocketAddr,
    /// Every request is answered with 503.
    pub(crate) is_down: AtomicBool,
    /// Answers to pushes are lost after they took effect.
    pub(crate) loses_answers: AtomicBool,
    /// Runs once, when a push asks for what is there.
    pub(crate) before_push: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    root: PathBuf,
    authorization: String,
}

impl GitServer {
    /// Serves the repositories under a folder to one user.
    pub(crate) async fn start(root: PathBuf, username: &str, password: &str) -> Arc<GitServer> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let server = Arc::new(GitServer {
            address: listener.local_addr().expect("address"),
            is_down: AtomicBool::new(false),
            loses_answers: AtomicBool::new(false),
            before_push: Mutex::default(),
            root,
            authorization: format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))),
        });
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let server = server.clone();
                        async move { Ok::<_, Infallible>(server.answer(request).await) }
                    });
                    _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        server
    }

    pub(crate) fn url(&self, repository: &str) -> String {
        format!("http://{}/{repository}", self.address)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let plain = |status: u16| Response::builder().status(status).header("WWW-Authenticate", "Basic realm=\"git\"");
        if self.is_down.load(Ordering::SeqCst) {
            return plain(503).body(Full::default()).expect("answer");
        }
        let given = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        if given != Some(&self.authorization) {
            return plain(401).body(Full::default()).expect("answer");
        }
        let asks = request.uri().query() == Some("service=git-receive-pack");
        if let Some(act) = self.before_push.lock().expect("lock").take_if(|_| asks) {
            act();
        }
        let is_push = request.uri().path().ends_with("/git-receive-pack");
        let answer = self.backend(request).await;
        match is_push && self.loses_answers.swap(false, Ordering::SeqCst) {
            true => plain(502).body(Full::default()).expect("answer"),
            false => answer,
        }
    }

    async fn backend(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.expect("body").to_bytes();
        let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let mut child = Command::new("git")
            .arg("http-backend")
            .env("GIT_PROJECT_ROOT", &self.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("REMOTE_USER", "somebody")
            .env("REQUEST_METHOD", head.method.as_str())
            .env("PATH_INFO", head.uri.path())
            .env("QUERY_STRING", head.uri.query().unwrap_or_default())
            .env("CONTENT_TYPE", header("content-type"))
            .env("CONTENT_LENGTH", body.len().to_string())
            .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
            .env("GIT_PROTOCOL", header("git-protocol"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("git http-backend");
        let mut stdin = child.stdin.take().expect("stdin");
        let feeding = tokio::spawn(async move { stdin.write_all(&body).await });
        let output = child.wait_with_output().await.expect("output");
        _ = feeding.await;
        let split = output.stdout.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(output.stdout.len());
        let (head, body) = output.stdout.split_at(split);
        let mut answer = Response::builder();
        for line in String::from_utf8_lossy(head).lines() {
            answer = match line.split_once(": ") {
                Some(("Status", status)) => answer.status(&status[..3]),
                Some((name, value)) => answer.header(name, value),
                None => answer,
            };
        }
        answer.body(Full::from(body.get(4..).unwrap_or_default().to_vec())).expect("answer")
    }
}
