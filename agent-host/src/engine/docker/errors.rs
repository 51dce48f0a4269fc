//! What Docker's answers mean. Docker has few status codes, so much must be read from its messages.

use bollard::errors::Error;

use crate::engine::EngineError;

/// Translates the client library's error for an action, named as a person would.
pub(super) fn translate(error: Error, action: String, address: &str) -> EngineError {
    match error {
        Error::DockerResponseServerError { status_code, message } => answer(status_code, message, action),
        Error::DockerStreamError { error } => answer(500, error, action),
        Error::DockerContainerWaitError { error, .. } => answer(500, error, action),
        Error::SocketNotFoundError(path) => unreachable_at(address, format!("there is no socket at {path}")),
        Error::HyperLegacyError { err } => unreachable_at(address, chain(&err)),
        Error::HyperResponseError { err } => unreachable_at(address, chain(&err)),
        Error::IOError { err } => unreachable_at(address, chain(&err)),
        other => EngineError::Other { action, status: 0, detail: other.to_string() },
    }
}

fn answer(status: u16, detail: String, action: String) -> EngineError {
    if is_disk_full(&detail) {
        EngineError::DiskFull { action, detail }
    } else if status == 404 {
        EngineError::NotFound { action, detail }
    } else {
        EngineError::Other { action, status, detail }
    }
}

fn unreachable_at(address: &str, detail: String) -> EngineError {
    EngineError::Unreachable { address: address.to_owned(), detail }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    devfleet_shared::error::Chain(error).to_string()
}

pub(super) fn is_disk_full(detail: &str) -> bool {
    detail.contains("no space left on device") || detail.contains("disk quota exceeded")
}

pub(super) fn is_subnet_taken(detail: &str) -> bool {
    detail.contains("Pool overlaps with other one") || detail.contains("networks have overlapping")
}

/// Says whether a container could not start because of the program it was to run.
pub(super) fn is_not_runnable(detail: &str) -> bool {
    let of_program =
        detail.contains("exec: \"") || detail.contains("exec user process") || detail.contains("chdir to cwd");
    let why = ["no such file", "not found", "permission denied", "exec format error", "is a directory"];
    of_program && why.iter().any(|why| detail.contains(why))
}

/// Says whether a registry was not reached, as opposed to: it refused.
pub(super) fn is_registry_unreachable(detail: &str) -> bool {
    const SIGNS: [&str; 11] = [
        "no such host",
        "connection refused",
        "connection reset",
        "i/o timeout",
        "TLS handshake timeout",
        "deadline exceeded",
        "Client.Timeout",
        "network is unreachable",
        "server misbehaving",
        "unexpected EOF",
        "proxyconnect",
    ];
    SIGNS.iter().any(|sign| detail.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status_code: u16, message: &str) -> EngineError {
        let error = Error::DockerResponseServerError { status_code, message: message.into() };
        translate(error, "do it".into(), "unix:///run/docker.sock")
    }

    #[test]
    fn answers_become_what_they_mean() {
        assert!(matches!(said(404, "No such container: x"), EngineError::NotFound { .. }));
        assert!(matches!(said(500, "write /x: no space left on device"), EngineError::DiskFull { .. }));
        assert!(matches!(said(409, "Conflict"), EngineError::Other { status: 409, .. }));
        assert!(said(500, "oops").is_retryable() && !said(409, "Conflict").is_retryable());
        let gone = translate(Error::SocketNotFoundError("/x".into()), "do it".into(), "unix:///x");
        assert!(gone.to_string().contains("is Docker running") && gone.is_retryable());
    }

    #[test]
    fn messages_of_different_dockers_are_recognised() {
        for message in [
            r#"OCI runtime create failed: container_linux.go:380: starting container process caused: exec: "/bin/sh": stat /bin/sh: no such file or directory: unknown"#,
            r#"failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: "nope": executable file not found in $PATH: unknown"#,
            "standard_init_linux.go:228: exec user process caused: exec format error",
        ] {
            assert!(is_not_runnable(message), "{message}");
        }
        assert!(!is_not_runnable("network devbox-x not found"));
        assert!(is_subnet_taken("Pool overlaps with other one on this address space"));
        assert!(is_subnet_taken("invalid pool request: Pool overlaps with other one on this address space"));
        assert!(is_registry_unreachable("Get \"https://r/v2/\": dial tcp: lookup r on 1.1.1.1:53: no such host"));
        assert!(!is_registry_unreachable(
            "pull access denied for x, repository does not exist or may require 'docker login'"
        ));
    }
}
