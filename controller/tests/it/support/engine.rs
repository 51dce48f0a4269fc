//! Container engines that fail: a switch in front of the real Docker that can also refuse, and one that is too old.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

/// Returns where the real engine listens: `DOCKER_HOST`, as Docker's own client has it, or the usual socket.
pub(crate) fn real_engine() -> String {
    std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".into())
}

/// A socket that leads to the real engine while it is on. Off, there is no socket, and every connection is cut.
pub(crate) struct EngineSwitch {
    dir: TempDir,
    on: Option<JoinHandle<()>>,
    refuses: Arc<AtomicBool>,
}

/// Requests that it can refuse.
const MAKING: &[u8] = b"/containers/create";
/// How it refuses them.
const REFUSAL: &[u8] =
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: 40\r\n\
    Connection: close\r\n\r\n{\"message\":\"the shim cannot be started\"}";

impl EngineSwitch {
    /// Makes one that is off.
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory"), on: None, refuses: Arc::default() }
    }

    /// Makes no containers any more, or makes them again.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::SeqCst);
    }

    /// Returns the engine's address for `host.toml`.
    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Turns it on: when this returns, it can be connected to.
    pub(crate) fn on(&mut self) {
        let listener = UnixListener::bind(self.socket()).expect("a socket");
        self.on = Some(tokio::spawn(pass(listener, Arc::clone(&self.refuses))));
    }

    /// Turns it off: when this returns, nothing passes any more.
    pub(crate) async fn off(&mut self) {
        let task = self.on.take().expect("it is on");
        task.abort();
        // The end of the task drops its connections.
        assert!(task.await.expect_err("it runs until it is told to end").is_cancelled());
        std::fs::remove_file(self.socket()).expect("the socket goes");
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("engine.sock")
    }
}

impl Drop for EngineSwitch {
    fn drop(&mut self) {
        if let Some(task) = self.on.take() {
            task.abort();
        }
    }
}

async fn pass(listener: UnixListener, refuses: Arc<AtomicBool>) {
    let mut connections = JoinSet::new();
    loop {
        let (near, _) = listener.accept().await.expect("a connection");
        let refuses = Arc::clone(&refuses);
        connections.spawn(async move {
            let far = UnixStream::connect(real_engine().trim_start_matches("unix://")).await.expect("the real engine");
            let ((from_near, mut to_near), (mut from_far, to_far)) = (near.into_split(), far.into_split());
            // Either side may break off.
            tokio::select! {
                refused = ask(from_near, to_far, &refuses) => if refused {
                    drop(to_near.write_all(REFUSAL).await);
                },
                _ = tokio::io::copy(&mut from_far, &mut to_near) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Passes on what the client says, to its end; says whether it asked for something that is refused.
async fn ask(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, refuses: &AtomicBool) -> bool {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else {
            drop(to.shutdown().await);
            // The answer may still come.
            return std::future::pending().await;
        };
        let line = buffer[..count].split(|byte| *byte == b'\r').next().unwrap_or_default();
        if refuses.load(Ordering::SeqCst) && line.windows(MAKING.len()).any(|part| part == MAKING) {
            return true;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return false;
        }
    }
}

/// An engine of 2019, as far as it gets asked: it says what it is.
pub(crate) struct OldEngine {
    dir: TempDir,
    task: JoinHandle<()>,
}

impl OldEngine {
    /// Starts it.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("engine.sock")).expect("a socket");
        let version =
            r#"{"Version":"19.03.15","ApiVersion":"1.40","MinAPIVersion":"1.12","Os":"linux","Arch":"amd64"}"#;
        let answers =
            axum::Router::new().fallback(move || async move { ([("content-type", "application/json")], version) });
        let task = tokio::spawn(async move { axum::serve(listener, answers).await.expect("it serves") });
        Self { dir, task }
    }

    /// Returns the engine's address for `host.toml`.
    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.dir.path().join("engine.sock").display())
    }
}

impl Drop for OldEngine {
    fn drop(&mut self) {
        self.task.abort();
    }
}
