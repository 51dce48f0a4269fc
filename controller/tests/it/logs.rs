//! Stored logs: hosts that repeat themselves, readers at their own pace, restarts at any moment, two controllers at
//! once. One suite, on a directory, in memory, and on a storage that speaks the protocol of S3.

use std::time::Duration;

use devfleet_controller::artifacts::{Artifacts, KeptDiff};
use devfleet_controller::files::Files;
use devfleet_controller::logs::{JobLogs, LogError, RecordStream};
use devfleet_proto::v1::log_record::Channel;
use devfleet_proto::v1::{LogChunk, LogRecord};
use devfleet_shared::error::Chain;
use devfleet_shared::id::{AttemptId, JobId};
use futures_util::StreamExt as _;
use proptest::prelude::*;
use prost::Message as _;

use crate::support::certificates::Certificates;
use crate::support::s3::{Behaves, Bucket, Front};

/// A log among some files.
struct Bench {
    files: Files,
    job: JobId,
    attempt: AttemptId,
}

impl Bench {
    fn new(files: &Files) -> Bench {
        Bench { files: files.clone(), job: JobId::random(), attempt: AttemptId::random() }
    }

    /// Opens the files as a fresh process does.
    fn logs(&self) -> JobLogs {
        JobLogs::new(self.files.clone())
    }

    async fn push(&self, logs: &JobLogs, offset: usize, data: &[u8]) -> Result<u64, LogError> {
        logs.append(&self.job, &self.attempt, chunk(offset, data)).await
    }

    fn records(&self, logs: &JobLogs) -> RecordStream {
        logs.records(&self.job, &self.attempt)
    }

    fn follow(&self, logs: &JobLogs) -> RecordStream {
        logs.follow(&self.job, &self.attempt)
    }

    fn folder(&self) -> String {
        format!("logs/{}/{}", self.job, self.attempt)
    }

    /// Returns the names of the log's objects.
    async fn objects(&self) -> Vec<String> {
        let listed = self.files.list(&self.folder()).await.expect("listed");
        listed.into_iter().map(|(name, _)| name).collect()
    }
}

fn chunk(offset: usize, data: &[u8]) -> LogChunk {
    LogChunk { offset: offset as u64, crc32: crc32fast::hash(data), data: data.to_vec(), ..LogChunk::default() }
}

fn record(text: &str) -> LogRecord {
    let channel = if text == "end" { Channel::End } else { Channel::Out };
    LogRecord { unix_ms: 5, data: text.as_bytes().to_vec(), channel: channel.into(), ..LogRecord::default() }
}

fn encode(texts: &[&str]) -> Vec<u8> {
    texts.iter().flat_map(|text| record(text).encode_length_delimited_to_vec()).collect()
}

/// Numbered records and an end.
fn numbered(count: usize) -> Vec<u8> {
    let names: Vec<String> = (0..count).map(|n| format!("record {n}")).collect();
    encode(&names.iter().map(String::as_str).chain(["end"]).collect::<Vec<_>>())
}

async fn texts(stream: RecordStream) -> Vec<String> {
    let all = stream.map(|record| String::from_utf8_lossy(&record.expect("record").data).into_owned()).collect();
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("the stream ends")
}

/// What logs and diffs keep to, whatever they are kept in.
async fn contract(files: &Files) {
    files.try_out().await.expect("every verb works");
    chunks_are_stored_once_wherever_they_are_cut(files).await;
    a_damaged_chunk_is_not_taken(files).await;
    followers_get_what_is_there_then_what_comes(files).await;
    a_partial_record_is_waited_for(files).await;
    a_log_that_gets_no_end_is_closed_and_still_takes_what_comes_late(files).await;
    a_log_that_was_never_begun_can_be_read_and_closed(files).await;
    a_log_beyond_the_limit_is_refused(files).await;
    segments_stay_few_and_readers_do_not_notice(files).await;
    a_controller_that_follows_another_goes_on_where_it_stopped(files).await;
    what_damaged_bytes_hide_is_said(files).await;
    the_last_diff_of_an_attempt_is_the_one_that_is_read(files).await;
}

async fn chunks_are_stored_once_wherever_they_are_cut(files: &Files) {
    let bench = Bench::new(files);
    let logs = bench.logs();
    let bytes = encode(&["one", "two", "three"]);
    assert_eq!(bench.push(&logs, 0, &bytes[..7]).await.expect("append"), 7);
    assert_eq!(bench.push(&logs, 9, &bytes[9..]).await.expect("a gap"), 7);
    assert_eq!(bench.push(&logs, 0, &bytes[..5]).await.expect("again"), 7);
    assert_eq!(bench.push(&logs, 3, &bytes[3..]).await.expect("an overlap"), bytes.len() as u64);
    assert_eq!(texts(bench.records(&logs)).await, ["one", "two", "three"]);
    assert_eq!(texts(bench.records(&bench.logs())).await, ["one", "two", "three"], "also after a restart");
}

async fn a_damaged_chunk_is_not_taken(files: &Files) {
    let bench = Bench::new(files);
    let logs = bench.logs();
    let mut damaged = chunk(0, &encode(&["one"]));
    damaged.data[2] ^= 1;
    assert_eq!(logs.append(&bench.job, &bench.attempt, damaged).await.expect("answered"), 0);
    assert!(bench.objects().await.is_empty());
}

async fn followers_get_what_is_there_then_what_comes(files: &Files) {
    let bench = Bench::new(files);
    let logs = bench.logs();
    let bytes = encode(&["one", "two", "three", "end", "beyond"]);
    let early = tokio::spawn(texts(bench.follow(&logs)));
    let mut lazy = bench.follow(&logs);
    for at in 0..bytes.len() {
        bench.push(&logs, at, &bytes[at..=at]).await.expect("append");
    }
    let expected = ["one", "two", "three", "end"];
    assert_eq!(early.await.expect("follower"), expected);
    let first = lazy.next().await.expect("a record").expect("readable");
    assert_eq!(first.data, b"one", "a slow reader held up nobody and misses nothing");
    assert_eq!(texts(lazy).await, expected[1..]);
    assert_eq!(texts(bench.follow(&logs)).await, expected);
}

async fn a_partial_record_is_waited_for(files: &Files) {
    let bench = Bench::new(files);
    let logs = bench.logs();
    let bytes = encode(&["one", "two", "end"]);
    bench.push(&logs, 0, &bytes[..10]).await.expect("append");
    assert_eq!(texts(bench.records(&logs)).await, ["one"]);
    let mut follower = bench.follow(&logs);
    assert_eq!(follower.next().await.expect("record").expect("readable").data, b"one");
    assert!(tokio::time::timeout(Duration::from_millis(50), follower.next()).await.is_err());
    bench.push(&logs, 10, &bytes[10..]).await.expect("append");
    assert_eq!(texts(follower).await, ["two", "end"]);
}

async fn a_log_that_gets_no_end_is_closed_and_still_takes_what_comes_late(files: &Files) {
    let bench = Bench::new(files);
    let logs = bench.logs();
    let bytes = encode(&["one", "two", "end"]);
    bench.push(&logs, 0, &bytes[..10]).await.expect("append");
    let follower = tokio::spawn(texts(bench.follow(&logs)));
    logs.complete(&bench.job, &bench.attempt).await.expect("close");
    logs.complete(&bench.job, &bench.attempt).await.expect("close, twice");
    let seen = follower.await.expect("follower");
    assert!(seen[0] == "one" && seen[1].contains("ends here"), "{seen:?}");
    let again = bench.logs();
    assert_eq!(texts(bench.follow(&again)).await, seen, "also after a restart");
    assert_eq!(bench.push(&again, 10, &bytes[10..]).await.expect("late"), bytes.len() as u64);
    assert_eq!(texts(bench.follow(&again)).await, ["one", "two", "end"]);
}

async fn a_log_that_was_never_begun_can_be_read_and_closed(files: &Files) {
    let bench = Bench::new(files);
    let logs = bench.logs();
    assert!(texts(bench.records(&logs)).await.is_empty());
    logs.complete(&bench.job, &bench.attempt).await.expect("close");
    assert_eq!(texts(bench.follow(&logs)).await.len(), 1);
}

async fn a_log_beyond_the_limit_is_refused(files: &Files) {
    let bench = Bench::new(files);
    let logs = bench.logs().with_limit(100);
    let bytes = encode(&["x"; 40]);
    assert_eq!(bench.push(&logs, 0, &bytes[..90]).await.expect("append"), 90);
    let refused = bench.push(&logs, 90, &bytes[90..]).await.expect_err("too long");
    assert!(matches!(refused, LogError::Full { .. }) && !refused.is_retryable());
    let seen = texts(bench.follow(&logs)).await;
    assert!(seen.last().is_some_and(|text| text.contains("longer than is kept")), "{seen:?}");
}

async fn segments_stay_few_and_readers_do_not_notice(files: &Files) {
    let bench = Bench::new(files);
    let (logs, stale) = (bench.logs(), bench.logs());
    let bytes = numbered(120);
    let mut pieces = bytes.chunks(11).enumerate();
    for (at, piece) in pieces.by_ref().take(20) {
        bench.push(&logs, at * 11, piece).await.expect("append");
    }
    // Another process has looked before, and reads on after what it saw is gone.
    let mut reader = bench.follow(&stale);
    reader.next().await.expect("a record").expect("readable");
    for (at, piece) in pieces {
        bench.push(&logs, at * 11, piece).await.expect("append");
        assert!(at % 8 > 0 || bench.objects().await.len() <= 40, "{:?}", bench.objects().await);
    }
    logs.settle(&bench.job, &bench.attempt).await.expect("settled");
    assert_eq!(bench.objects().await.len(), 1, "{:?}", bench.objects().await);
    assert_eq!(texts(bench.follow(&logs)).await.len(), 121);
    // It does not know that there is more until something is pushed to it; what it knew is there, elsewhere.
    bench.push(&stale, bytes.len(), b"").await.expect("a look");
    assert_eq!(texts(reader).await.len(), 120);
    assert_eq!(texts(bench.records(&stale)).await.len(), 121);
}

async fn a_controller_that_follows_another_goes_on_where_it_stopped(files: &Files) {
    let bench = Bench::new(files);
    let (first, second) = (bench.logs(), bench.logs());
    let bytes = encode(&["one", "two", "three", "end"]);
    bench.push(&first, 0, &bytes[..10]).await.expect("append");
    bench.push(&second, 10, &bytes[10..12]).await.expect("append");
    let mut follower = bench.follow(&first);
    assert_eq!(follower.next().await.expect("a record").expect("readable").data, b"one");
    first.leave();
    let ended = follower.next().await.expect("an answer").expect_err("what comes is not seen here");
    assert!(matches!(ended, LogError::NotLeading(_)) && ended.is_retryable(), "{ended}");
    // The one that led before has a chunk under way: the same bytes, cut otherwise.
    assert_eq!(bench.push(&first, 5, &bytes[5..20]).await.expect("late"), 20);
    assert_eq!(bench.push(&second, 12, &bytes[12..]).await.expect("append"), bytes.len() as u64);
    for logs in [&first, &second] {
        logs.leave();
        assert_eq!(texts(bench.follow(logs)).await, ["one", "two", "three", "end"]);
    }
    second.settle(&bench.job, &bench.attempt).await.expect("settled");
    assert_eq!(bench.objects().await.len(), 1);
}

async fn what_damaged_bytes_hide_is_said(files: &Files) {
    let bench = Bench::new(files);
    let bytes = [encode(&["one"]), vec![0xff; 30]].concat();
    bench.push(&bench.logs(), 0, &bytes).await.expect("append");
    let seen = texts(bench.records(&bench.logs())).await;
    assert!(seen[0] == "one" && seen[1].contains("damaged"), "{seen:?}");
}

async fn the_last_diff_of_an_attempt_is_the_one_that_is_read(files: &Files) {
    let artifacts = Artifacts::new(files.clone());
    let (job, attempt, other) = (JobId::random(), AttemptId::random(), AttemptId::random());
    assert_eq!(artifacts.diff(&job, &attempt).await.expect("read"), None);
    artifacts.keep_diff(&job, &attempt, "first", false).await.expect("kept");
    artifacts.keep_diff(&job, &attempt, "+second\n", true).await.expect("kept");
    artifacts.keep_diff(&job, &other, "another attempt's", false).await.expect("kept");
    let kept = artifacts.diff(&job, &attempt).await.expect("read").expect("there is one");
    assert_eq!(kept, KeptDiff { text: "+second\n".into(), truncated: true });
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    contract(&Files::in_memory()).await;
}

#[tokio::test]
async fn a_directory_keeps_the_contract() {
    let dir = tempfile::tempdir().expect("a directory");
    contract(&Files::in_directory(&dir.path().join("made/here")).expect("a directory")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_keeps_the_contract() {
    let bucket = Bucket::start().await;
    contract(&bucket.files("fleet-a").await).await;
    let front = Front::of(&bucket).await;
    contract(&front.files("fleet-b").await).await;
    let strangers = bucket.files("fleet").await.list("").await.expect("listed");
    assert!(strangers.is_empty(), "fleets do not see each other: {strangers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_in_trouble_costs_time_and_no_line() {
    let bucket = Bucket::start().await;
    let front = Front::of(&bucket).await;
    let files = front.files("fleet").await;
    let bench = Bench::new(&files);
    let logs = bench.logs();
    let bytes = encode(&["one", "two", "three", "end"]);
    assert_eq!(bench.push(&logs, 0, &bytes[..7]).await.expect("append"), 7);

    // It did the work and its answer was lost: the call is repeated, and nothing is there twice.
    front.behave(Behaves::LosesAnswers(1));
    assert_eq!(bench.push(&logs, 7, &bytes[7..9]).await.expect("repeated"), 9);
    front.behave(Behaves::Answers(503, 2));
    assert_eq!(bench.push(&logs, 9, &bytes[9..11]).await.expect("repeated"), 11);
    front.behave(Behaves::Delays(Duration::from_secs(2), 1));
    assert_eq!(bench.push(&logs, 11, &bytes[11..13]).await.expect("late"), 13);

    // Longer than a call is repeated: nothing is acknowledged, and the same chunk goes well later.
    front.behave(Behaves::Answers(500, usize::MAX));
    let failed = bench.push(&logs, 13, &bytes[13..]).await.expect_err("it is away");
    assert!(failed.is_retryable(), "{failed}");
    let read = bench.records(&bench.logs()).next().await.expect("an answer").expect_err("it is away");
    assert!(read.is_retryable(), "{read}");
    front.behave(Behaves::Well);
    assert_eq!(bench.push(&logs, 13, &bytes[13..]).await.expect("again"), bytes.len() as u64);
    assert_eq!(texts(bench.follow(&logs)).await, ["one", "two", "three", "end"]);

    // What a person must change is said so, and is not hidden behind patience.
    front.behave(Behaves::Answers(403, usize::MAX));
    let refused = files.try_out().await.expect_err("forbidden");
    assert!(!refused.is_retryable() && refused.to_string().contains("files.secret_key"), "{refused}");
    front.behave(Behaves::Well);
    let missing = bucket.other("no-such-bucket").await.try_out().await.expect_err("no bucket");
    assert!(!missing.is_retryable() && missing.to_string().contains("files.bucket"), "{missing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_over_tls_is_used_only_where_its_authority_is_trusted() {
    let bucket = Bucket::over_tls().await;
    let files = bucket.trusting("fleet", Some(&bucket.authority())).await;
    contract(&files).await;
    let (dir, other) = (tempfile::tempdir().expect("a directory"), Certificates::make());
    let stranger = dir.path().join("ca.pem");
    std::fs::write(&stranger, other.ca).expect("written");
    for ca in [None, Some(stranger.as_path())] {
        let refused = bucket.trusting("fleet", ca).await.try_out().await.expect_err("not trusted");
        let told = Chain(&refused).to_string().to_lowercase();
        assert!(told.contains("certificate"), "{ca:?}: {told}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Two controllers, each of which believes now and then that it leads, restarts, merges, and leaves.
    #[test]
    fn acknowledged_bytes_outlive_restarts_and_controllers_that_work_at_once(
        steps in prop::collection::vec((0..700usize, 0..120usize, 0..2usize, 0..6u8), 1..80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let bench = Bench::new(&Files::in_memory());
            let bytes = numbered(60);
            let (mut controllers, mut acknowledged) = ([bench.logs(), bench.logs()], 0);
            for (offset, length, who, deed) in steps {
                match deed {
                    0 => controllers[who] = bench.logs(),
                    1 => controllers[who].leave(),
                    2 => controllers[who].settle(&bench.job, &bench.attempt).await.expect("settled"),
                    _ => {}
                }
                let from = offset.min(bytes.len());
                let to = bytes.len().min(from + length);
                let answer = bench.push(&controllers[who], from, &bytes[from..to]).await.expect("append") as usize;
                acknowledged = answer.max(acknowledged);
                let stored = bench.push(&bench.logs(), usize::MAX >> 8, b"").await.expect("a look") as usize;
                assert!(stored >= acknowledged, "{stored} after {acknowledged}");
            }
            let logs = bench.logs();
            bench.push(&logs, acknowledged, &bytes[acknowledged..]).await.expect("append");
            assert_eq!(texts(bench.follow(&logs)).await.len(), 61);
            logs.settle(&bench.job, &bench.attempt).await.expect("settled");
            assert_eq!(bench.objects().await.len(), 1);
            assert_eq!(texts(bench.follow(&bench.logs())).await.len(), 61);
        });
    }
}
