//! What the `Jobs` service streams: a job as it changes, and its logs as they grow.

use devfleet_proto::v1;
use devfleet_shared::error::Chain;
use devfleet_shared::id::{AttemptId, JobId};
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::JobsService;
use crate::api::refusal;
use crate::logs::LogError;

/// Sends the job whenever what people see of it changed, until it has ended.
pub(super) async fn watch_job(service: JobsService, id: JobId, sender: mpsc::Sender<Result<v1::Job, Status>>) {
    let mut changed = service.view.changed();
    let mut waiting = service.waiting.clone();
    let mut last = None;
    loop {
        let found = service.view.read().job(&id);
        let Some(job) = found else {
            drop(sender.send(Err(refusal(Code::NotFound, "NO_SUCH_JOB", format!("job {id} is gone")))).await);
            return;
        };
        let shown = service.show(&job);
        if last.as_ref() != Some(&shown) {
            if sender.send(Ok(shown.clone())).await.is_err() {
                return;
            }
            last = Some(shown);
        }
        if job.state.phase.is_terminal() {
            return;
        }
        tokio::select! {
            () = sender.closed() => return,
            _ = changed.changed() => {}
            _ = waiting.changed() => {}
        }
    }
}

/// Sends the logs of one attempt or all, oldest first; with `follow` until the job has ended and all logs are complete.
pub(super) async fn send_logs(
    service: JobsService,
    id: JobId,
    only: Option<AttemptId>,
    follow: bool,
    sender: mpsc::Sender<Result<v1::LogRecord, Status>>,
) {
    let mut changed = service.view.changed();
    let mut sent = 0;
    loop {
        let Some(job) = service.view.read().job(&id) else { return };
        let attempts = job.state.attempts.iter().map(|attempt| &attempt.id);
        let due: Vec<AttemptId> =
            attempts.filter(|id| only.as_ref().is_none_or(|only| only == *id)).skip(sent).cloned().collect();
        for attempt in due {
            if send_log(&service, &id, &attempt, follow, &sender).await.is_err() {
                return;
            }
            sent += 1;
        }
        if !follow || job.state.phase.is_terminal() || (only.is_some() && sent > 0) {
            return;
        }
        tokio::select! {
            () = sender.closed() => return,
            _ = changed.changed() => {}
        }
    }
}

/// Says why a log cannot be read; who follows it opens it again where that may help.
fn log_status(error: &LogError) -> Status {
    let (code, reason) = match error {
        LogError::NotLeading(_) => (Code::Unavailable, "NO_LEADER"),
        error if error.is_retryable() => (Code::Unavailable, "LOG_FAILED"),
        _ => (Code::Internal, "LOG_FAILED"),
    };
    refusal(code, reason, format!("cannot {}", Chain(error)))
}

async fn send_log(
    service: &JobsService,
    job: &JobId,
    attempt: &AttemptId,
    follow: bool,
    sender: &mpsc::Sender<Result<v1::LogRecord, Status>>,
) -> Result<(), ()> {
    let mut records = if follow { service.logs.follow(job, attempt) } else { service.logs.records(job, attempt) };
    loop {
        let record = tokio::select! {
            () = sender.closed() => return Err(()),
            record = records.next() => record,
        };
        let sent = match record {
            Some(Ok(record)) => sender.send(Ok(v1::LogRecord { attempt: attempt.to_string(), ..record })).await,
            Some(Err(error)) => {
                let status = log_status(&error);
                drop(sender.send(Err(status)).await);
                return Err(());
            }
            None => return Ok(()),
        };
        sent.map_err(drop)?;
    }
}
