//! A TCP proxy that loses answers and requests, or brings one late: what happens to a call whose server did the work and
//! died before it said so, or does it when nobody waits for it any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
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
    /// The same, but that one is only late: see [`Proxy::let_go`].
    Time = 3,
}

/// A request that its sender has given up.
struct Late {
    request: Vec<u8>,
    to: OwnedWriteHalf,
    answers: OwnedReadHalf,
}

/// The proxy. Ends with its value.
pub(crate) struct Proxy {
    pub(crate) address: String,
    mode: Arc<AtomicU8>,
    late: Arc<Mutex<Option<Late>>>,
    _running: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn to(target: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let mode = Arc::new(AtomicU8::new(Loses::Nothing as u8));
        let late = Arc::<Mutex<Option<Late>>>::default();
        let mut running = JoinSet::new();
        let (shared, kept) = (mode.clone(), late.clone());
        running.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                // Who lost something does not come back.
                if shared.load(Ordering::SeqCst) != Loses::Nothing as u8 {
                    continue;
                }
                let (mode, target, kept) = (shared.clone(), target.clone(), kept.clone());
                connections.spawn(async move {
                    let Ok(server) = TcpStream::connect(&target).await else { return };
                    let ((mut from_client, mut to_client), (mut answers, mut to)) =
                        (client.into_split(), server.into_split());
                    let mut request = tokio::select! {
                        lost = pump(&mut from_client, &mut to, &mode, &[Loses::Requests, Loses::Time]) => lost,
                        _ = pump(&mut answers, &mut to_client, &mode, &[Loses::Answers]) => return,
                    };
                    if mode.load(Ordering::SeqCst) == Loses::Time as u8 {
                        while !is_whole(&request) && from_client.read_buf(&mut request).await.is_ok_and(|read| read > 0)
                        {
                        }
                        *kept.lock().await = Some(Late { request, to, answers });
                    }
                });
            }
        });
        Proxy { address, mode, late, _running: running }
    }

    pub(crate) fn lose(&self, what: Loses) {
        self.mode.store(what as u8, Ordering::SeqCst);
    }

    /// Lets the late request arrive, and waits for what its server says.
    pub(crate) async fn let_go(&self) {
        let mut late = self.late.lock().await.take().expect("one is late");
        late.to.write_all(&late.request).await.expect("the server listens");
        let read = late.answers.read(&mut [0; 1_024]).await.expect("the server answers");
        assert!(read > 0, "the server hung up");
    }
}

/// Passes bytes on; returns the first ones that are lost.
async fn pump(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, mode: &AtomicU8, ends_at: &[Loses]) -> Vec<u8> {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let mode = mode.load(Ordering::SeqCst);
        if ends_at.iter().any(|end| *end as u8 == mode) || to.write_all(&buffer[..count]).await.is_err() {
            return buffer[..count].to_vec();
        }
    }
    Vec::new()
}

/// Says whether these frames of HTTP/2 end a request: one of data says that it is the last of its stream.
fn is_whole(mut frames: &[u8]) -> bool {
    const DATA: u8 = 0;
    const END_STREAM: u8 = 1;
    while let [a, b, c, kind, flags, _, _, _, _, rest @ ..] = frames {
        if *kind == DATA && flags & END_STREAM != 0 {
            return true;
        }
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        frames = rest.get(length..).unwrap_or_default();
    }
    false
}
