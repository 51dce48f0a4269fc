//! Waiting for a job's end. The stream is opened again by itself when the controller restarts.

use std::error::Error as _;
use std::time::Duration;

use devfleet_proto::v1;
use devfleet_shared::backoff::Backoff;
use devfleet_shared::clock::Boot;
use tonic::{Code, Status};

use super::connection::Connection;
use super::exit::Exit;
use super::failure::{CliError, untrusted};
use super::{Session, render, shape};

/// How long a stream is tried again without an answer before we give up.
const PATIENCE: Duration = Duration::from_secs(600);
/// The pace of the tries.
const PACE: Backoff = Backoff { first: Duration::from_millis(200), ceiling: Duration::from_secs(5) };

/// What goes to standard output while waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    /// Every change of the job.
    EveryChange,
    /// The job at its end; for people, changes go to standard error.
    OnlyTheEnd,
}

/// Waits for a job's end and returns the exit code of its outcome.
pub(super) async fn to_the_end(
    connection: &Connection,
    job: &str,
    session: &Session,
    show: Show,
) -> Result<Exit, CliError> {
    let watching = follow(connection, job, session, show);
    let last = tokio::select! {
        last = watching => last?,
        _ = tokio::signal::ctrl_c() => {
            let goes_on = format!("; the job goes on: `devfleet jobs watch {job}` waits for it, `devfleet cancel {job}` stops it");
            return Err(CliError::Interrupted(goes_on));
        }
    };
    session.output.waited();
    match show {
        Show::EveryChange if session.output.format() == super::Format::Table => {
            session.output.text(&render::jobs::ended(&last))?;
        }
        Show::EveryChange => {}
        Show::OnlyTheEnd => session.output.show(
            || shape::jobs::job(&last),
            || format!("{}\n{}", render::jobs::progress(&last), render::jobs::ended(&last)),
        )?,
    }
    Ok(Exit::of(&last))
}

async fn follow(connection: &Connection, job: &str, session: &Session, show: Show) -> Result<v1::Job, CliError> {
    let mut line = String::new();
    let mut reopening = Reopening::new(session);
    let request = v1::WatchJobRequest { job: job.to_owned() };
    // The first answer comes with a read's patience, so that a wrong address is told at once.
    let mut stream = connection.read(async || connection.streams().watch_job(request.clone()).await).await?;
    loop {
        match stream.message().await {
            Ok(Some(job)) => {
                reopening.answered();
                let next = render::jobs::progress(&job);
                session.output.wait_for(&next);
                if next != line {
                    tell(&job, &next, session, show)?;
                    line = next;
                }
                if job.phase == "ended" {
                    return Ok(job);
                }
                continue;
            }
            Ok(None) => reopening.pause(None, connection).await?,
            Err(status) => reopening.pause(Some(status), connection).await?,
        }
        stream = loop {
            match connection.streams().watch_job(request.clone()).await {
                Ok(response) => break response.into_inner(),
                Err(status) => reopening.pause(Some(status), connection).await?,
            }
        };
    }
}

fn tell(job: &v1::Job, line: &str, session: &Session, show: Show) -> Result<(), CliError> {
    match show {
        Show::EveryChange => session.output.show_next(|| shape::jobs::job(job), || line.to_owned()),
        Show::OnlyTheEnd if job.phase == "ended" => Ok(()),
        Show::OnlyTheEnd => {
            session.output.note(line);
            if job.phase == "awaiting-approval" {
                session.output.note(&render::jobs::next_step(job));
            }
            Ok(())
        }
    }
}

/// Paces the tries to open a stream that broke.
pub(super) struct Reopening<'a> {
    session: &'a Session,
    tries: u32,
    since: Option<Boot>,
}

impl<'a> Reopening<'a> {
    /// Starts with a stream that works.
    pub(super) fn new(session: &'a Session) -> Self {
        Self { session, tries: 0, since: None }
    }

    /// Notes that the controller answered.
    pub(super) fn answered(&mut self) {
        if self.since.take().is_some() {
            self.session.output.note("connected again");
        }
        self.tries = 0;
    }

    /// Waits before the next try, or fails: at once if the controller refused, else after ten minutes.
    pub(super) async fn pause(&mut self, status: Option<Status>, connection: &Connection) -> Result<(), CliError> {
        let now = self.session.clock.boot();
        let waited = now.0.saturating_sub(self.since.get_or_insert(now).0);
        match status {
            Some(status) if !is_broken(&status) || waited > PATIENCE => return Err(connection.failure(status)),
            // A stream that ends early ended with its controller.
            None if waited > PATIENCE => return Err(connection.failure(Status::unavailable("the stream ends early"))),
            _ => {}
        }
        if self.tries == 0 {
            self.session.output.note("the connection to the controller broke; trying again");
        }
        self.tries += 1;
        tokio::time::sleep(PACE.pause(self.tries, Backoff::jitter())).await;
        Ok(())
    }
}

/// Says whether a stream broke on its way, rather than being refused.
fn is_broken(status: &Status) -> bool {
    let on_the_way = status.source().is_some() || status.code() == Code::Unavailable;
    on_the_way && untrusted(status).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_final_and_a_broken_connection_is_not() {
        assert!(is_broken(&Status::unavailable("shutting down")));
        assert!(!is_broken(&Status::not_found("no such job")));
        assert!(!is_broken(&Status::internal("a defect")));
        let mut on_the_way = Status::unknown("h2 protocol error");
        on_the_way.set_source(std::sync::Arc::new(std::io::Error::other("reset")));
        assert!(is_broken(&on_the_way));
    }
}
