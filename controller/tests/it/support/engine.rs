//! Container engines that fail: a switch in front of the real Docker, and one that is too old.

use std::path::PathBuf;

use tempfile::TempDir;
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
}

impl EngineSwitch {
    /// Makes one that is off.
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory"), on: None }
    }

    /// Returns the engine's address for `host.toml`.
    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Turns it on: when this returns, it can be connected to.
    pub(crate) fn on(&mut self) {
        let listener = UnixListener::bind(self.socket()).expect("a socket");
        self.on = Some(tokio::spawn(pass(listener)));
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

async fn pass(listener: UnixListener) {
    let mut connections = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.expect("a connection");
        connections.spawn(async move {
            let mut far =
                UnixStream::connect(real_engine().trim_start_matches("unix://")).await.expect("the real engine");
            // Either side may break off.
            drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
        });
        while connections.try_join_next().is_some() {}
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
