//! Shipping to a controller that dies, forgets, refuses and damages.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use devfleet_host::spool::shipping::{CHUNK_BYTES, Dial, LogShipper, LogShipperHandle};
use devfleet_host::spool::{Spool, Spools};
use devfleet_proto::v1::log_record::Channel as LogChannel;
use devfleet_proto::v1::session_server::{Session, SessionServer};
use devfleet_proto::v1::{
    AuthorizePublishRequest, AuthorizePublishResponse, ControllerMessage, GetGrantRequest, Grant, HostMessage, LogAck,
    LogChunk, LogRecord,
};
use devfleet_shared::id::{AttemptId, JobId};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

/// What the controller keeps, and how it misbehaves.
#[derive(Default)]
struct Kept {
    logs: BTreeMap<String, Vec<u8>>,
    /// Attempts in the order of their chunks.
    order: Vec<String>,
    refuse: bool,
    /// The stream breaks before each chunk with these numbers is answered; stored or not by turns.
    break_at: Vec<usize>,
    /// Chunks with these numbers are not taken.
    ignore_at: Vec<usize>,
    /// Everything is lost before the chunk with this number.
    forget_at: Option<usize>,
    chunks: usize,
    largest: usize,
}

#[derive(Clone, Default)]
struct Fake {
    kept: Arc<Mutex<Kept>>,
    arrived: Arc<Notify>,
}

impl Fake {
    fn take(&self, chunk: &LogChunk) -> Result<LogAck, Status> {
        let mut kept = self.kept.lock().expect("kept");
        kept.chunks += 1;
        let number = kept.chunks;
        kept.largest = kept.largest.max(chunk.data.len());
        kept.order.push(chunk.attempt.clone());
        assert_eq!(crc32fast::hash(&chunk.data), chunk.crc32);
        if kept.forget_at == Some(number) {
            kept.logs.clear();
        }
        let breaks = kept.break_at.contains(&number);
        let ignored = kept.ignore_at.contains(&number) || (breaks && number.is_multiple_of(2));
        let refused = kept.refuse;
        let log = kept.logs.entry(chunk.attempt.clone()).or_default();
        let (stored, end) = (log.len() as u64, chunk.offset + chunk.data.len() as u64);
        if !ignored && !refused && chunk.offset <= stored && end > stored {
            log.extend(&chunk.data[(stored - chunk.offset) as usize..]);
        }
        let offset = log.len() as u64;
        if breaks {
            Err(Status::unavailable("killed"))
        } else {
            Ok(LogAck { attempt: chunk.attempt.clone(), offset, refused })
        }
    }
}

#[async_trait]
impl Session for Fake {
    type OpenStream = BoxStream<'static, Result<ControllerMessage, Status>>;
    type PushLogsStream = BoxStream<'static, Result<LogAck, Status>>;

    async fn open(&self, _: Request<Streaming<HostMessage>>) -> Result<Response<Self::OpenStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn push_logs(&self, request: Request<Streaming<LogChunk>>) -> Result<Response<Self::PushLogsStream>, Status> {
        let fake = self.clone();
        let answers = request.into_inner().map(move |chunk| {
            let answer = fake.take(&chunk?);
            fake.arrived.notify_one();
            answer
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get_grant(&self, _: Request<GetGrantRequest>) -> Result<Response<Grant>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn authorize_publish(
        &self,
        _: Request<AuthorizePublishRequest>,
    ) -> Result<Response<AuthorizePublishResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

struct Plain(Endpoint);

#[async_trait]
impl Dial for Plain {
    async fn dial(&self) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.connect().await?)
    }
}

struct Bench {
    dir: tempfile::TempDir,
    spools: Spools,
    fake: Fake,
    handle: LogShipperHandle,
    shutdown: CancellationToken,
}

impl Bench {
    async fn new(kept: Kept) -> Bench {
        let fake = Fake { kept: Arc::new(Mutex::new(kept)), ..Fake::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let service = SessionServer::new(fake.clone());
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        let dir = tempfile::tempdir().expect("folder");
        let spools = Spools::open_dir(dir.path().to_owned()).expect("folder");
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("endpoint");
        let (shipper, handle) = LogShipper::new(spools.clone(), Arc::new(Plain(endpoint)));
        let shutdown = CancellationToken::new();
        tokio::spawn(shipper.run(shutdown.clone()));
        Bench { dir, spools, fake, handle, shutdown }
    }

    fn spool(&self) -> Spool {
        self.spools.open(&JobId::random(), &AttemptId::random(), 3).expect("spool")
    }

    async fn drained(&self) {
        tokio::time::timeout(Duration::from_secs(60), self.handle.drained()).await.expect("drained in time");
    }

    fn stored(&self, spool: &Spool) -> Vec<u8> {
        self.fake.kept.lock().expect("kept").logs.get(spool.attempt().as_str()).cloned().unwrap_or_default()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn fill(spool: &Spool, bytes: usize) {
    for n in 0..bytes.div_ceil(30_000) {
        let data = (0..30_000).map(|at| (at * 7 + n * 13) as u8).collect();
        spool.append(&LogRecord { data, channel: LogChannel::Out.into(), ..LogRecord::default() }).expect("append");
    }
}

fn end(spool: &Spool) -> Vec<u8> {
    spool.sync().expect("sync");
    let mut whole = spool.read(0, usize::MAX).expect("read");
    let last = LogRecord { channel: LogChannel::End.into(), ..LogRecord::default() };
    whole.extend(devfleet_host::spool::frames::encode(std::slice::from_ref(&last)));
    spool.append(&last).expect("append");
    whole
}

#[tokio::test]
async fn a_log_arrives_whole_in_bounded_chunks_and_its_spool_is_removed() {
    let bench = Bench::new(Kept::default()).await;
    let spool = bench.spool();
    fill(&spool, 3_000_000);
    let whole = end(&spool);
    bench.drained().await;
    assert!(bench.stored(&spool) == whole);
    assert!(bench.fake.kept.lock().expect("kept").largest <= CHUNK_BYTES);
    assert_eq!(std::fs::read_dir(bench.dir.path()).expect("folder").count(), 0);
}

#[tokio::test]
async fn live_output_arrives_before_the_log_is_complete() {
    let bench = Bench::new(Kept::default()).await;
    let spool = bench.spool();
    fill(&spool, 1);
    let arrived = async {
        while bench.stored(&spool).len() as u64 != spool.len() {
            bench.fake.arrived.notified().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), arrived).await.expect("arrives within seconds");
    assert!(!spool.is_gone());
}

#[tokio::test]
async fn nothing_is_lost_when_the_controller_breaks_off_ignores_chunks_and_forgets_everything() {
    let kept =
        Kept { break_at: vec![1, 4, 6, 9, 15], ignore_at: vec![3, 11, 12, 20], forget_at: Some(18), ..Kept::default() };
    let bench = Bench::new(kept).await;
    let spools = [bench.spool(), bench.spool()];
    spools.iter().for_each(|spool| fill(spool, 2_000_000));
    let wholes = spools.each_ref().map(end);
    bench.drained().await;
    // What the controller lost after it had acknowledged a whole log is not here any more.
    let survived = spools.iter().zip(&wholes).filter(|(spool, whole)| bench.stored(spool) == **whole).count();
    assert!(survived >= 1);
    assert!(bench.fake.kept.lock().expect("kept").chunks > 20, "the faults were met");
}

#[tokio::test]
async fn chunks_that_are_not_taken_are_sent_again_for_as_long_as_it_takes() {
    let bench =
        Bench::new(Kept { ignore_at: vec![1, 2, 3, 4, 5, 9, 10], break_at: vec![7, 8, 12], ..Kept::default() }).await;
    let spool = bench.spool();
    fill(&spool, 1_500_000);
    let whole = end(&spool);
    bench.drained().await;
    assert!(bench.stored(&spool) == whole);
}

#[tokio::test]
async fn a_refused_log_is_forgotten_and_the_recorder_goes_on() {
    let bench = Bench::new(Kept { refuse: true, ..Kept::default() }).await;
    let spool = bench.spool();
    fill(&spool, 100_000);
    bench.drained().await;
    assert!(spool.is_gone());
    fill(&spool, 100_000);
    assert_eq!(std::fs::read_dir(bench.dir.path()).expect("folder").count(), 0);
}

#[tokio::test]
async fn a_flood_in_one_spool_does_not_hold_up_the_others() {
    let bench = Bench::new(Kept { ignore_at: vec![1], ..Kept::default() }).await;
    let flood = bench.spool();
    fill(&flood, 20_000_000);
    let chatty: Vec<Spool> = (0..5).map(|_| bench.spool()).collect();
    chatty.iter().for_each(|spool| fill(spool, 1));
    chatty.iter().for_each(|spool| _ = end(spool));
    let whole = end(&flood);
    bench.drained().await;
    assert!(bench.stored(&flood) == whole);
    let order = bench.fake.kept.lock().expect("kept").order.clone();
    for spool in &chatty {
        let place = order.iter().position(|attempt| attempt == spool.attempt().as_str());
        assert!(place.is_some_and(|place| place < order.len() / 2), "{place:?} of {}", order.len());
    }
}
