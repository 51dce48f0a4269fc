//! What can go wrong for a person at the command line: what happened, what to do next, and the exit code.

use std::path::PathBuf;

use tonic::Code;
use tonic_types::StatusExt as _;

use super::exit::Exit;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line or a file that it names is wrong.
    #[error("{0}")]
    Usage(String),
    /// There is no context.
    #[error("there is no context at {}, so it is not known which controller to ask", .0.display())]
    NoContext(PathBuf),
    /// The context cannot be used.
    #[error("the context {} cannot be used: {problem}", .path.display())]
    Context {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", .path.display())]
    File {
        /// `read`, `write`, `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The controller cannot be reached.
    #[error("the controller at {controller} cannot be reached: {problem}")]
    Unreachable {
        /// Its URL.
        controller: String,
        /// Why.
        problem: String,
    },
    /// The controller proves to be another one than the context trusts.
    #[error("the controller at {controller} shows a certificate that the context does not trust: {problem}")]
    Untrusted {
        /// Its URL.
        controller: String,
        /// Why.
        problem: String,
    },
    /// The controller said no.
    #[error("{message}")]
    Refused {
        /// The gRPC code.
        code: Code,
        /// The whole sentence for people.
        message: String,
        /// The class for programs; empty if there is none.
        reason: String,
    },
    /// A program that `devfleet up` starts, or its surroundings, failed.
    #[error("{problem}")]
    Local {
        /// What happened.
        problem: String,
        /// What to do next.
        advice: String,
    },
    /// Standard output is closed.
    #[error("cannot write to standard output: {0}")]
    Output(#[source] std::io::Error),
    /// Ctrl-C.
    #[error("interrupted{0}")]
    Interrupted(String),
}

impl CliError {
    /// Returns the exit code.
    pub fn exit(&self) -> Exit {
        match self {
            CliError::Usage(_) => Exit::USAGE,
            CliError::NoContext(_) | CliError::Untrusted { .. } => Exit::DENIED,
            CliError::Unreachable { .. } => Exit::UNREACHABLE,
            CliError::Refused { code, .. } => exit_for(*code),
            CliError::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::OK,
            CliError::Interrupted(_) => Exit::INTERRUPTED,
            CliError::Context { .. } | CliError::File { .. } | CliError::Local { .. } | CliError::Output(_) => {
                Exit::FAILED
            }
        }
    }

    /// Says what to do next; empty if the message says it all.
    pub fn hint(&self) -> String {
        match self {
            CliError::Usage(_) | CliError::Output(_) | CliError::Interrupted(_) => String::new(),
            CliError::NoContext(_) => {
                "start devfleet on this machine with `devfleet up`, or set DEVFLEET_CONTEXT (or --context-file) to the \
                 context file that an operator gave you"
                    .into()
            }
            CliError::Context { .. } => "mend it, or have `devfleet up` write it anew after you moved it away".into(),
            CliError::File { action, .. } => format!("check that the path exists and that you may {action} it"),
            CliError::Unreachable { .. } => {
                "is the controller running there? On a single machine start it with `devfleet up`; `devfleet doctor` looks \
                 closer"
                    .into()
            }
            CliError::Untrusted { .. } => {
                "the controller has another authority than the context: ask its operator for a new context; on a single \
                 machine stop `devfleet up` and start it again"
                    .into()
            }
            CliError::Refused { code, reason, .. } => hint_for(*code, reason).into(),
            CliError::Local { advice, .. } => advice.clone(),
        }
    }

    /// Takes what a call answered.
    pub fn of(status: tonic::Status, controller: &str) -> CliError {
        let controller = controller.to_owned();
        if let Some(problem) = untrusted(&status) {
            return CliError::Untrusted { controller, problem };
        }
        let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        match status.code() {
            Code::Unavailable if reason.is_empty() => CliError::Unreachable { controller, problem: causes(&status) },
            Code::DeadlineExceeded | Code::Cancelled => {
                CliError::Unreachable { controller, problem: "it did not answer in time".into() }
            }
            code if status.message().is_empty() => {
                CliError::Refused { code, message: format!("the controller answered: {code}"), reason }
            }
            code => CliError::Refused { code, message: status.message().to_owned(), reason },
        }
    }
}

/// Returns what of a status is the trust in a certificate, if it is.
pub fn untrusted(status: &tonic::Status) -> Option<String> {
    let causes = causes(status);
    let at = causes.find("invalid peer certificate")?;
    Some(causes[at..].to_owned())
}

/// Joins the causes below a status, the most telling one last; each text once.
fn causes(status: &tonic::Status) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let text = error.to_string();
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        cause = error.source();
    }
    texts.retain(|text| text != "transport error");
    if texts.is_empty() { status.message().to_owned() } else { texts.join(": ") }
}

fn exit_for(code: Code) -> Exit {
    match code {
        Code::InvalidArgument | Code::OutOfRange => Exit::USAGE,
        Code::NotFound => Exit::NOT_FOUND,
        Code::Unauthenticated | Code::PermissionDenied => Exit::DENIED,
        Code::Unavailable | Code::DeadlineExceeded => Exit::UNREACHABLE,
        Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => Exit::CONFLICT,
        _ => Exit::FAILED,
    }
}

fn hint_for(code: Code, reason: &str) -> &'static str {
    match (code, reason) {
        (_, "NO_SUCH_PROJECT") => {
            "`devfleet projects list` shows the projects; `devfleet projects apply FILE` makes one"
        }
        (_, "NO_SUCH_JOB") => "`devfleet jobs list` shows the jobs",
        (_, "NO_SUCH_HOST") => "`devfleet hosts list` shows the hosts",
        (_, "NO_SUCH_TOKEN") => "`devfleet tokens list` shows the tokens",
        (_, "STALE_DIGEST") => {
            "read the proposal that stands now with `devfleet env show JOB`, then approve its digest"
        }
        (_, "AMBIGUOUS_JOB" | "AMBIGUOUS_HOST") => "write more characters of the id",
        (Code::NotFound, _) => "`devfleet jobs list`, `projects list` and `hosts list` show what there is",
        (Code::Unauthenticated, _) => {
            "ask an operator for a token (`devfleet tokens create`) and write it into the context file"
        }
        (Code::PermissionDenied, _) => {
            "`devfleet whoami` shows your role; ask an operator for a token with a higher one"
        }
        (Code::FailedPrecondition, _) => "`devfleet jobs show JOB` shows where the job is",
        (Code::AlreadyExists, _) => "use another name or key, or look at what is there already",
        (Code::Aborted, _) => "something changed at the same moment: look again and repeat the command",
        (Code::ResourceExhausted, _) => "wait a moment, or ask for less, and repeat the command",
        (Code::Unimplemented, _) => {
            "controller and CLI are of different versions: compare `devfleet version` with the \
             controller's"
        }
        (Code::Internal | Code::Unknown | Code::DataLoss, _) => {
            "look into the controller's log; `devfleet doctor` checks \
             the rest"
        }
        (Code::Unavailable, _) => "repeat the command in a moment",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;
    use tonic_types::ErrorDetails;

    use super::*;

    fn refused(code: Code, reason: &str) -> CliError {
        let details = ErrorDetails::with_error_info(reason, "devfleet", []);
        CliError::of(Status::with_error_details(code, "the digest is stale", details), "https://c")
    }

    #[test]
    fn codes_become_exit_codes_and_reasons_become_hints() {
        let stale = refused(Code::FailedPrecondition, "STALE_DIGEST");
        assert_eq!(stale.exit(), Exit::CONFLICT);
        assert_eq!(stale.to_string(), "the digest is stale");
        assert!(stale.hint().contains("devfleet env show JOB"), "{}", stale.hint());
        let exits = [
            (Code::InvalidArgument, 2),
            (Code::NotFound, 3),
            (Code::Unauthenticated, 4),
            (Code::PermissionDenied, 4),
            (Code::Unavailable, 5),
            (Code::Aborted, 6),
            (Code::AlreadyExists, 6),
            (Code::Internal, 1),
        ];
        for (code, exit) in exits {
            assert_eq!(refused(code, "X").exit().0, exit, "{code:?}");
            assert!(code == Code::InvalidArgument || !refused(code, "X").hint().is_empty(), "{code:?} says what to do");
        }
    }

    #[test]
    fn an_unreachable_controller_is_named() {
        let error = CliError::of(Status::unavailable("tcp connect error"), "https://127.0.0.1:1");
        assert_eq!(error.exit(), Exit::UNREACHABLE);
        assert!(error.to_string().contains("https://127.0.0.1:1"), "{error}");
        assert!(error.hint().contains("devfleet up"));
    }
}
