//! Stored logs: hosts that repeat themselves, readers at their own pace, restarts at any moment.

use std::path::PathBuf;
use std::time::Duration;

use devfleet_controller::logs::{JobLogs, LogError, RecordStream};
use devfleet_proto::v1::log_record::Channel;
use devfleet_proto::v1::{LogChunk, LogRecord};
use devfleet_shared::id::{AttemptId, JobId};
use futures_util::StreamExt as _;
use proptest::prelude::*;
use prost::Message as _;

struct Bench {
    dir: tempfile::TempDir,
    job: JobId,
    attempt: AttemptId,
}

impl Bench {
    fn new() -> Bench {
        Bench { dir: tempfile::tempdir().expect("folder"), job: JobId::random(), attempt: AttemptId::random() }
    }

    /// Opens the folder as a fresh process does.
    fn logs(&self) -> JobLogs {
        JobLogs::new(self.dir.path().to_owned())
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(self.job.as_str()).join(format!("{}.log", self.attempt))
    }

    async fn push(&self, logs: &JobLogs, offset: usize, data: &[u8]) -> Result<u64, LogError> {
        logs.append(&self.job, &self.attempt, &chunk(offset, data)).await
    }
}

fn chunk(offset: usize, data: &[u8]) -> LogChunk {
    LogChunk { offset: offset as u64, crc32: crc32fast::hash(data), data: data.to_vec(), ..LogChunk::default() }
}

fn record(text: &str, unix_ms: u64) -> LogRecord {
    let channel = if text == "end" { Channel::End } else { Channel::Out };
    LogRecord { unix_ms, data: text.as_bytes().to_vec(), channel: channel.into(), ..LogRecord::default() }
}

fn encode(texts: &[&str]) -> Vec<u8> {
    texts.iter().flat_map(|text| record(text, 5).encode_length_delimited_to_vec()).collect()
}

async fn texts(stream: RecordStream) -> Vec<String> {
    let all = stream.map(|record| String::from_utf8_lossy(&record.expect("record").data).into_owned()).collect();
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("the stream ends")
}

#[tokio::test]
async fn chunks_are_stored_once_wherever_they_are_cut_and_gaps_are_answered_with_what_is_there() {
    let bench = Bench::new();
    let logs = bench.logs();
    let bytes = encode(&["one", "two", "three"]);
    assert_eq!(bench.push(&logs, 0, &bytes[..7]).await.expect("append"), 7);
    assert_eq!(bench.push(&logs, 9, &bytes[9..]).await.expect("a gap"), 7);
    assert_eq!(bench.push(&logs, 0, &bytes[..5]).await.expect("again"), 7);
    assert_eq!(bench.push(&logs, 3, &bytes[3..]).await.expect("an overlap"), bytes.len() as u64);
    assert_eq!(std::fs::read(bench.path()).expect("log"), bytes);
    assert_eq!(texts(logs.records(&bench.job, &bench.attempt)).await, ["one", "two", "three"]);
}

#[tokio::test]
async fn a_damaged_chunk_is_not_taken() {
    let bench = Bench::new();
    let logs = bench.logs();
    let mut damaged = chunk(0, &encode(&["one"]));
    damaged.data[2] ^= 1;
    assert_eq!(logs.append(&bench.job, &bench.attempt, &damaged).await.expect("answered"), 0);
    assert!(!bench.path().exists());
}

#[tokio::test]
async fn followers_get_what_is_there_then_what_comes_and_end_with_the_log() {
    let bench = Bench::new();
    let logs = bench.logs();
    let bytes = encode(&["one", "two", "three", "end", "beyond"]);
    let early = tokio::spawn(texts(logs.follow(&bench.job, &bench.attempt)));
    let mut lazy = logs.follow(&bench.job, &bench.attempt);
    for at in 0..bytes.len() {
        bench.push(&logs, at, &bytes[at..=at]).await.expect("append");
    }
    let expected = ["one", "two", "three", "end"];
    assert_eq!(early.await.expect("follower"), expected);
    let first = lazy.next().await.expect("a record").expect("readable");
    assert_eq!(first.data, b"one", "a slow reader held up nobody and misses nothing");
    assert_eq!(texts(lazy).await, expected[1..]);
    assert_eq!(texts(logs.follow(&bench.job, &bench.attempt)).await, expected);
}

#[tokio::test]
async fn a_partial_record_is_waited_for_and_a_reading_without_following_ends_before_it() {
    let bench = Bench::new();
    let logs = bench.logs();
    let bytes = encode(&["one", "two", "end"]);
    bench.push(&logs, 0, &bytes[..10]).await.expect("append");
    assert_eq!(texts(logs.records(&bench.job, &bench.attempt)).await, ["one"]);
    let mut follower = logs.follow(&bench.job, &bench.attempt);
    assert_eq!(follower.next().await.expect("record").expect("readable").data, b"one");
    assert!(tokio::time::timeout(Duration::from_millis(50), follower.next()).await.is_err());
    bench.push(&logs, 10, &bytes[10..]).await.expect("append");
    assert_eq!(texts(follower).await, ["two", "end"]);
}

#[tokio::test]
async fn a_log_that_gets_no_end_ends_its_followers_when_it_is_closed_and_still_takes_what_comes_late() {
    let bench = Bench::new();
    let logs = bench.logs();
    let bytes = encode(&["one", "two", "end"]);
    bench.push(&logs, 0, &bytes[..10]).await.expect("append");
    let follower = tokio::spawn(texts(logs.follow(&bench.job, &bench.attempt)));
    logs.complete(&bench.job, &bench.attempt).await.expect("close");
    logs.complete(&bench.job, &bench.attempt).await.expect("close, twice");
    let seen = follower.await.expect("follower");
    assert!(seen[0] == "one" && seen[1].contains("ends here"), "{seen:?}");
    let again = bench.logs();
    assert_eq!(texts(again.follow(&bench.job, &bench.attempt)).await, seen, "also after a restart");
    assert_eq!(bench.push(&again, 10, &bytes[10..]).await.expect("late"), bytes.len() as u64);
    assert_eq!(texts(again.follow(&bench.job, &bench.attempt)).await, ["one", "two", "end"]);
}

#[tokio::test]
async fn a_log_that_was_never_begun_can_be_read_and_closed() {
    let bench = Bench::new();
    let logs = bench.logs();
    assert!(texts(logs.records(&bench.job, &bench.attempt)).await.is_empty());
    assert!(logs.attempts(&bench.job).await.expect("list").is_empty());
    logs.complete(&bench.job, &bench.attempt).await.expect("close");
    assert_eq!(texts(logs.follow(&bench.job, &bench.attempt)).await.len(), 1);
}

#[tokio::test]
async fn a_log_beyond_the_limit_is_refused_and_its_readers_are_told() {
    let bench = Bench::new();
    let logs = bench.logs().with_limit(100);
    let bytes = encode(&["x"; 40]);
    assert_eq!(bench.push(&logs, 0, &bytes[..90]).await.expect("append"), 90);
    let refused = bench.push(&logs, 90, &bytes[90..]).await.expect_err("too long");
    assert!(matches!(refused, LogError::Full { .. }) && !refused.is_retryable());
    assert_eq!(std::fs::metadata(bench.path()).expect("log").len(), 90);
    let seen = texts(logs.follow(&bench.job, &bench.attempt)).await;
    assert!(seen.last().is_some_and(|text| text.contains("longer than is kept")), "{seen:?}");
}

#[tokio::test]
async fn attempts_are_listed_in_the_order_in_which_their_logs_began() {
    let bench = Bench::new();
    let logs = bench.logs();
    let attempts: Vec<AttemptId> = (0..4).map(|_| AttemptId::random()).collect();
    for (attempt, begun) in attempts.iter().zip([30, 10, 40, 20]) {
        let bytes = record("one", begun).encode_length_delimited_to_vec();
        logs.append(&bench.job, attempt, &chunk(0, &bytes)).await.expect("append");
    }
    let expected = [1, 3, 0, 2].map(|at: usize| attempts[at].clone());
    assert_eq!(logs.attempts(&bench.job).await.expect("list"), expected);
}

#[tokio::test]
async fn what_a_power_cut_left_unreadable_is_cut_off_and_asked_for_again() {
    for damage in [&[0u8; 30][..], &[0xff; 30]] {
        let bench = Bench::new();
        let bytes = encode(&["one", "two", "end"]);
        let good = encode(&["one"]).len();
        bench.push(&bench.logs(), 0, &bytes[..good]).await.expect("append");
        std::fs::write(bench.path(), [&bytes[..good], damage].concat()).expect("damage");
        let logs = bench.logs();
        assert_eq!(bench.push(&logs, bytes.len(), b"x").await.expect("answered"), good as u64);
        bench.push(&logs, good, &bytes[good..]).await.expect("append");
        assert_eq!(texts(logs.follow(&bench.job, &bench.attempt)).await, ["one", "two", "end"]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn acknowledged_bytes_outlive_restarts_and_torn_writes(
        pushes in prop::collection::vec((0..400usize, 0..120usize, any::<bool>(), 0..40usize), 1..30),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let bench = Bench::new();
            let names: Vec<String> = (0..60).map(|n| format!("record {n}")).collect();
            let bytes = encode(&names.iter().map(String::as_str).chain(["end"]).collect::<Vec<_>>());
            let (mut logs, mut acknowledged) = (bench.logs(), 0);
            for (offset, length, restart, torn) in pushes {
                if restart {
                    // Killed while it wrote the next chunk: a part of it is there.
                    let there = std::fs::read(bench.path()).unwrap_or_default().len();
                    if bench.path().exists() {
                        std::fs::write(bench.path(), &bytes[..bytes.len().min(there + torn)]).expect("tear");
                    }
                    logs = bench.logs();
                }
                let from = offset.min(bytes.len());
                let to = bytes.len().min(from + length);
                let answer = bench.push(&logs, from, &bytes[from..to]).await.expect("append") as usize;
                assert!(answer >= acknowledged, "{answer} after {acknowledged}");
                acknowledged = answer;
            }
            bench.push(&logs, acknowledged, &bytes[acknowledged..]).await.expect("append");
            assert_eq!(std::fs::read(bench.path()).expect("log"), bytes);
            assert_eq!(texts(logs.follow(&bench.job, &bench.attempt)).await.len(), 61);
        });
    }
}
