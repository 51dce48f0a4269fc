//! `devfleet submit`: hands in a job, and waits for its end on request.

use std::path::PathBuf;

use clap::Args;
use devfleet_proto::v1;
use devfleet_shared::units::Span;

use super::exit::Exit;
use super::failure::CliError;
use super::shape::{self, record};
use super::{Session, input, render, watch};

#[derive(Debug, Args)]
pub(super) struct SubmitArgs {
    /// The project to work on
    #[arg(long, short, value_name = "NAME")]
    project: String,
    /// What is to be done
    #[arg(long, short, value_name = "TEXT", required_unless_present = "task_file", conflicts_with = "task_file")]
    task: Option<String>,
    /// A file that says what is to be done; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    task_file: Option<PathBuf>,
    /// A file with a plan for the agent to follow
    #[arg(long, value_name = "FILE")]
    plan_file: Option<PathBuf>,
    /// Who does it: one of the project's agents [default: the project's default agent]
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// The branch to start from and to merge into [default: the repository's default branch]
    #[arg(long, value_name = "BRANCH")]
    base: Option<String>,
    /// The number of the issue that the job is about
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    issue: Option<u64>,
    /// A title of one line [default: the task's first line]
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// How urgent it is, from -100 up to the project's `max_priority`: the greater, the sooner
    #[arg(long, value_name = "NUMBER", default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Leave the environment standing for a look after the end: 30m, 4h, 1d
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "4h", require_equals = true)]
    keep: Option<Span>,
    /// Wait for the job's end and exit by its outcome
    #[arg(long)]
    wait: bool,
    /// A text that makes repeating this command safe: one key, one job [default: a random one]
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

pub(super) async fn run(args: SubmitArgs, session: &Session) -> Result<Exit, CliError> {
    let wait = args.wait;
    let request = request(args)?;
    let connection = session.connect()?;
    let answer = connection.read(async || connection.jobs().submit(request.clone()).await).await?;
    let created = answer.created;
    let job = answer.job.unwrap_or_default();
    if wait {
        session.output.note(&accepted(&job, created));
        return watch::to_the_end(&connection, &job.id, session, watch::Show::OnlyTheEnd).await;
    }
    session.output.show(
        || record([("job", shape::jobs::job(&job)), ("created", created.into())]),
        || format!("{}\n{}", accepted(&job, created), render::jobs::next_step(&job)),
    )?;
    Ok(Exit::OK)
}

fn accepted(job: &v1::Job, created: bool) -> String {
    let note = if created { "submitted" } else { "had been submitted before with this key" };
    format!("job {} {note}", job.id)
}

fn request(args: SubmitArgs) -> Result<v1::SubmitRequest, CliError> {
    let task = match (args.task, args.task_file) {
        (Some(task), _) => task,
        (None, Some(path)) => input::read(&path)?,
        (None, None) => String::new(),
    };
    if task.trim().is_empty() {
        return Err(CliError::Usage("the task is empty: say in --task or --task-file what is to be done".into()));
    }
    let plan = args.plan_file.as_deref().map(input::read).transpose()?.unwrap_or_default();
    for (name, text) in [("task", &task), ("plan", &plan)] {
        if text.len() > 64 << 10 {
            let problem = format!("the {name} has {} bytes, and 65536 are the most: shorten it", text.len());
            return Err(CliError::Usage(problem));
        }
    }
    Ok(v1::SubmitRequest {
        project: args.project,
        task,
        plan,
        agent: args.agent.unwrap_or_default(),
        base: args.base.unwrap_or_default(),
        hold_seconds: args.keep.map_or(0, |span| span.0.as_secs()),
        idempotency_key: args.idempotency_key.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
        issue: args.issue.unwrap_or_default(),
        title: args.title.unwrap_or_default(),
        priority: args.priority,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SubmitArgs,
    }

    fn parsed(line: &[&str]) -> Result<v1::SubmitRequest, String> {
        let line = Line::try_parse_from([&["submit", "--project", "p"], line].concat()).map_err(|e| e.to_string())?;
        request(line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn keep_takes_an_optional_time() {
        let held = |line: &[&str]| parsed(&[&["--task", "x"], line].concat()).expect("valid").hold_seconds;
        assert_eq!(held(&[]), 0);
        assert_eq!(held(&["--keep"]), 14_400);
        assert_eq!(held(&["--keep=30m"]), 1_800);
        assert!(parsed(&["--task", "x", "--keep=soon"]).expect_err("refused").contains("write 90s, 15m"));
    }

    #[test]
    fn a_random_key_is_made_when_none_is_given() {
        let key = |line: &[&str]| parsed(&[&["--task", "x"], line].concat()).expect("valid").idempotency_key;
        assert_ne!(key(&[]), key(&[]));
        assert_eq!(key(&["--idempotency-key", "k"]), "k");
    }

    #[test]
    fn a_task_is_needed_once_and_within_its_limit() {
        assert!(parsed(&[]).expect_err("refused").contains("--task"));
        assert!(parsed(&["--task", " \n"]).expect_err("refused").contains("the task is empty"));
        assert!(parsed(&["--task", "x", "--task-file", "y"]).expect_err("refused").contains("cannot be used with"));
        assert!(parsed(&["--task", &"x".repeat(65_537)]).expect_err("refused").contains("65537 bytes"));
        assert!(parsed(&["--task", &"x".repeat(65_536)]).is_ok());
    }
}
