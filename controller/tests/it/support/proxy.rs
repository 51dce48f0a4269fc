//! A TCP proxy that loses answers: what happens to a call whose server did the work and died before it said so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What the proxy does to connections that are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Loses {
    Nothing = 0,
    /// Requests arrive, answers do not: at the first one the connection ends.
    Answers = 1,
    /// Requests do not arrive: at the first one the connection ends.
    Requests = 2,
}

/// The proxy. Ends with its value.
pub(crate) struct Proxy {
    pub(crate) address: String,
    mode: Arc<AtomicU8>,
    _running: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn to(target: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let mode = Arc::new(AtomicU8::new(Loses::Nothing as u8));
        let mut running = JoinSet::new();
        let shared = mode.clone();
        running.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                // Who lost something does not come back.
                if shared.load(Ordering::SeqCst) != Loses::Nothing as u8 {
                    continue;
                }
                let (mode, target) = (shared.clone(), target.clone());
                connections.spawn(async move {
                    let Ok(server) = TcpStream::connect(&target).await else { return };
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    tokio::select! {
                        () = pump(from_client, to_server, &mode, Loses::Requests) => {}
                        () = pump(from_server, to_client, &mode, Loses::Answers) => {}
                    }
                });
            }
        });
        Proxy { address, mode, _running: running }
    }

    pub(crate) fn lose(&self, what: Loses) {
        self.mode.store(what as u8, Ordering::SeqCst);
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mode: &AtomicU8, ends_at: Loses) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if mode.load(Ordering::SeqCst) == ends_at as u8 || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
