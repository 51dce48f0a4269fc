//! A proxy before a host's engine that carries a request out and loses the answer.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::fleet::Fleet;

#[derive(Default)]
struct Faults {
    /// What stands in the first line of the requests meant.
    path: String,
    left: u32,
    lost: u32,
}

impl Faults {
    /// Takes note of a request; says whether its answer is to be lost.
    fn takes(&mut self, line: &str) -> bool {
        let meant = self.left > 0 && line.contains(&self.path) && line.ends_with("HTTP/1.1");
        self.left -= u32::from(meant);
        self.lost += u32::from(meant);
        meant
    }
}

/// A proxy that a host's daemon uses instead of its engine.
pub(crate) struct EngineProxy {
    node: String,
    faults: Arc<Mutex<Faults>>,
    task: JoinHandle<()>,
}

impl EngineProxy {
    /// Puts one before the engine of a host; its daemon starts anew.
    pub(crate) fn before(fleet: &Fleet, node: &str) -> Self {
        let dir = fleet.dir().join(node);
        let (socket, engine) = (dir.join("proxy.sock"), dir.join("docker.sock"));
        let faults = Arc::<Mutex<Faults>>::default();
        drop(std::fs::remove_file(&socket));
        let listener = UnixListener::bind(&socket).expect("a socket");
        let task = tokio::spawn(serve(listener, engine.clone(), Arc::clone(&faults)));
        point(fleet, node, &engine, &socket);
        Self { node: node.to_owned(), faults, task }
    }

    /// Loses the answers of the next requests whose first line holds this.
    pub(crate) fn lose_answers(&self, path: &str, times: u32) {
        *self.faults.lock().expect("the faults") = Faults { path: path.to_owned(), left: times, lost: 0 };
    }

    /// Returns how many answers were lost.
    pub(crate) fn lost(&self) -> u32 {
        self.faults.lock().expect("the faults").lost
    }

    /// Takes it away; the daemon starts anew.
    pub(crate) fn remove(self, fleet: &Fleet) {
        let dir = fleet.dir().join(&self.node);
        point(fleet, &self.node, &dir.join("proxy.sock"), &dir.join("docker.sock"));
        self.task.abort();
    }
}

/// Lets a host's daemon use another socket.
fn point(fleet: &Fleet, node: &str, from: &Path, to: &Path) {
    let path = fleet.dir().join(node).join("host.toml");
    let text = std::fs::read_to_string(&path).expect("the host's configuration");
    let (from, to) = (format!("unix://{}", from.display()), format!("unix://{}", to.display()));
    assert!(text.contains(&from), "{from} in {text}");
    std::fs::write(&path, text.replace(&from, &to)).expect("written");
    fleet.kill(&format!("{node}.host"));
    fleet.start(&format!("{node}.host"));
}

async fn serve(listener: UnixListener, engine: PathBuf, faults: Arc<Mutex<Faults>>) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let Ok(far) = UnixStream::connect(&engine).await else { continue };
        connections.spawn(pass(near, far, Arc::clone(&faults)));
        while connections.try_join_next().is_some() {}
    }
}

/// Carries bytes both ways until either side ends, or an answer is to be lost.
async fn pass(near: UnixStream, far: UnixStream, faults: Arc<Mutex<Faults>>) {
    let (mut near_in, mut near_out) = near.into_split();
    let (mut far_in, mut far_out) = far.into_split();
    let losing = Arc::new(AtomicBool::new(false));
    let up = async {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = near_in.read(&mut bytes).await {
            let line = bytes[..count].split(|byte| *byte == b'\r').next().unwrap_or_default();
            if faults.lock().expect("the faults").takes(&String::from_utf8_lossy(line)) {
                losing.store(true, Ordering::SeqCst);
            }
            if far_out.write_all(&bytes[..count]).await.is_err() {
                break;
            }
        }
        drop(far_out.shutdown().await);
    };
    let down = async {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = far_in.read(&mut bytes).await {
            // The engine has answered, so the deed is done; the connection ends without a byte of it.
            if losing.load(Ordering::SeqCst) {
                return;
            }
            if near_out.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
        drop(near_out.shutdown().await);
    };
    // The engine's side ends last; with an answer that is lost it ends everything.
    tokio::pin!(up);
    tokio::select! {
        () = down => {}
        () = async { (&mut up).await; std::future::pending::<()>().await } => {}
    }
}
