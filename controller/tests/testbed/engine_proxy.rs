//! A proxy before a host's engine that loses answers, or answers itself.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::fleet::Fleet;

/// What goes wrong with a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The engine carries it out, and its answer is lost with the connection.
    AnswerLost,
    /// The engine never hears of it; the answer is 500.
    Status500,
}

const ERROR: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: 23\r\n\
    Connection: close\r\n\r\n{\"message\":\"a fault...\"}";

#[derive(Default)]
struct Faults {
    /// What stands in the first line of the requests meant, the fault, and how often it is still to come.
    left: Vec<(String, Fault, u32)>,
    met: u32,
}

impl Faults {
    /// Takes note of a request; returns what goes wrong with it.
    fn of(&mut self, line: &str) -> Option<Fault> {
        let meant = |(path, _, times): &&mut (String, Fault, u32)| {
            *times > 0 && line.contains(path.as_str()) && line.ends_with("HTTP/1.1")
        };
        let (_, fault, times) = self.left.iter_mut().find(meant)?;
        *times -= 1;
        self.met += 1;
        Some(*fault)
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

    /// Lets the next requests whose first line holds this meet a fault.
    pub(crate) fn fault(&self, path: &str, fault: Fault, times: u32) {
        self.faults.lock().expect("the faults").left.push((path.to_owned(), fault, times));
    }

    /// Returns how many requests met one.
    pub(crate) fn met(&self) -> u32 {
        self.faults.lock().expect("the faults").met
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

/// Carries bytes both ways until either side ends, or a request meets a fault.
async fn pass(near: UnixStream, far: UnixStream, faults: Arc<Mutex<Faults>>) {
    let (mut near_in, near_out) = near.into_split();
    let (mut far_in, mut far_out) = far.into_split();
    let near_out = tokio::sync::Mutex::new(near_out);
    let losing = AtomicBool::new(false);
    let up = async {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = near_in.read(&mut bytes).await {
            let line = bytes[..count].split(|byte| *byte == b'\r').next().unwrap_or_default();
            let fault = faults.lock().expect("the faults").of(&String::from_utf8_lossy(line));
            if fault == Some(Fault::Status500) {
                drop(near_out.lock().await.write_all(ERROR).await);
                return;
            }
            losing.fetch_or(fault == Some(Fault::AnswerLost), Ordering::SeqCst);
            if far_out.write_all(&bytes[..count]).await.is_err() {
                break;
            }
        }
        drop(far_out.shutdown().await);
        // The engine's side ends last.
        std::future::pending().await
    };
    let down = async {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = far_in.read(&mut bytes).await {
            // The engine has answered, so the deed is done; the connection ends without a byte of it.
            if losing.load(Ordering::SeqCst) || near_out.lock().await.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
        drop(near_out.lock().await.shutdown().await);
    };
    tokio::select! {
        () = down => {}
        () = up => {}
    }
}
