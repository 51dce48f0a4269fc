//! `devfleet logs`: a job's output, as lines for people, as records for programs, or as the bytes that were written.

use std::collections::BTreeMap;

use clap::Args;
use devfleet_proto::v1;
use devfleet_proto::v1::log_record::Channel;
use tonic::Streaming;

use super::connection::Connection;
use super::exit::Exit;
use super::failure::CliError;
use super::lines::Lines;
use super::output::Format;
use super::watch::Reopening;
use super::{Session, shape};

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// The job's id, or the beginning of it
    job: String,
    /// Go on until the job's log is complete
    #[arg(long, short)]
    follow: bool,
    /// Only this attempt's [default: all, oldest first]
    #[arg(long, value_name = "ATTEMPT")]
    attempt: Option<String>,
    /// The bytes that the steps wrote, unchanged; not to a terminal
    #[arg(long)]
    raw: bool,
}

pub(super) async fn run(args: LogsArgs, session: &Session) -> Result<Exit, CliError> {
    if args.raw && session.output.is_terminal() {
        let advice = "raw bytes may steer a terminal: pipe them, as in `devfleet logs --raw JOB | less`";
        return Err(CliError::Usage(advice.into()));
    }
    if args.raw && session.output.format() != Format::Table {
        return Err(CliError::Usage("--raw prints bytes, so it does not go with --output json or yaml".into()));
    }
    let connection = session.connect()?;
    let request = v1::ReadLogsRequest { job: args.job, follow: args.follow, attempt: args.attempt.unwrap_or_default() };
    let mut printer = Printer { session, raw: args.raw, lines: Lines::default() };
    read(&connection, request, session, &mut printer).await?;
    printer.end()?;
    Ok(Exit::OK)
}

async fn read(
    connection: &Connection,
    request: v1::ReadLogsRequest,
    session: &Session,
    printer: &mut Printer<'_>,
) -> Result<(), CliError> {
    let mut place = Place::default();
    let mut reopening = Reopening::new(session);
    let mut stream = connection.read(async || connection.streams().read_logs(request.clone()).await).await?;
    loop {
        let broken = take(&mut stream, &mut place, &mut reopening, printer).await?;
        // A stream that ends while the job goes on ended with its controller.
        if broken.is_none() && (!request.follow || has_ended(connection, &request.job).await?) {
            return Ok(());
        }
        reopening.pause(broken, connection).await?;
        place.begin_again();
        stream = loop {
            match connection.streams().read_logs(request.clone()).await {
                Ok(response) => break response.into_inner(),
                Err(status) => reopening.pause(Some(status), connection).await?,
            }
        };
    }
}

/// Prints what a stream brings; returns why it broke, or nothing at its end.
async fn take(
    stream: &mut Streaming<v1::LogRecord>,
    place: &mut Place,
    reopening: &mut Reopening<'_>,
    printer: &mut Printer<'_>,
) -> Result<Option<tonic::Status>, CliError> {
    loop {
        match stream.message().await {
            Ok(Some(record)) => {
                reopening.answered();
                if place.is_new(&record.attempt) {
                    printer.print(&record)?;
                }
            }
            Ok(None) => return Ok(None),
            Err(status) => return Ok(Some(status)),
        }
    }
}

async fn has_ended(connection: &Connection, job: &str) -> Result<bool, CliError> {
    let request = v1::GetJobRequest { job: job.to_owned() };
    let job = connection.read(async || connection.jobs().get_job(request.clone()).await).await?;
    Ok(job.phase == "ended")
}

/// How many records of each attempt were printed, so that a stream that begins again repeats none.
#[derive(Debug, Default)]
struct Place {
    printed: BTreeMap<String, u64>,
    passed: BTreeMap<String, u64>,
}

impl Place {
    fn begin_again(&mut self) {
        self.passed.clear();
    }

    fn is_new(&mut self, attempt: &str) -> bool {
        let passed = self.passed.entry(attempt.to_owned()).or_default();
        let printed = self.printed.entry(attempt.to_owned()).or_default();
        *passed += 1;
        let is_new = *passed > *printed;
        *printed = (*printed).max(*passed);
        is_new
    }
}

struct Printer<'a> {
    session: &'a Session,
    raw: bool,
    lines: Lines,
}

impl Printer<'_> {
    fn print(&mut self, record: &v1::LogRecord) -> Result<(), CliError> {
        let output = &self.session.output;
        if self.raw {
            return match record.channel() {
                Channel::Out | Channel::Err => output.raw(&record.data),
                _ => Ok(()),
            };
        }
        if output.format() != Format::Table {
            return output.show_next(|| shape::jobs::log_record(record), String::new);
        }
        print_lines(output, &self.lines.push(record))
    }

    fn end(&mut self) -> Result<(), CliError> {
        print_lines(&self.session.output, &self.lines.end(None))
    }
}

fn print_lines(output: &super::Output, lines: &[String]) -> Result<(), CliError> {
    if lines.is_empty() { Ok(()) } else { output.text(&lines.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_begins_again_repeats_nothing_and_skips_nothing() {
        let mut place = Place::default();
        assert_eq!(["a", "a", "b"].map(|attempt| place.is_new(attempt)), [true, true, true]);
        place.begin_again();
        assert_eq!(["a", "a", "a", "b", "b"].map(|attempt| place.is_new(attempt)), [false, false, true, false, true]);
        place.begin_again();
        assert_eq!(["a", "a", "a", "a"].map(|attempt| place.is_new(attempt)), [false, false, false, true]);
    }
}
