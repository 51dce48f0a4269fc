//! `devfleet doctor`: this machine first, then what the controller finds about itself and the hosts.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use devfleet_proto::v1;

use super::connection::Connection;
use super::context::{self, Context};
use super::exit::Exit;
use super::failure::CliError;
use super::shape::{self, list, record};
use super::{Session, render};

pub(super) async fn run(session: &Session) -> Result<Exit, CliError> {
    session.output.wait_for("looking at this machine");
    let mut findings = vec![context_file(&session.context_path)];
    let context = Context::load(&session.context_path);
    let needs_docker = context.as_ref().is_ok_and(|context| context.controllers.iter().any(|one| is_local(one)));
    findings.push(engine(needs_docker).await);
    findings.push(git(needs_docker).await);
    if let Ok(connection) = context.and_then(|context| Connection::new(&context)) {
        session.output.wait_for("asking the controller, which asks its hosts");
        findings.extend(remote(&connection).await);
    }
    session.output.waited();
    session.output.show(
        || record([("findings", list(&findings, shape::fleet::finding))]),
        || render::fleet::findings(&findings),
    )?;
    Ok(if findings.iter().all(|finding| finding.ok) { Exit::OK } else { Exit::FAILED })
}

fn finding(check: &str, ok: bool, message: impl Into<String>) -> v1::Finding {
    v1::Finding { subject: "this machine".into(), check: check.into(), ok, message: message.into() }
}

fn failed(check: &str, error: &CliError) -> v1::Finding {
    finding(check, false, format!("{error}; {}", error.hint()))
}

fn context_file(path: &Path) -> v1::Finding {
    match Context::load(path) {
        Ok(context) => {
            let mode = context::mode(path).unwrap_or_default();
            finding(
                "context",
                true,
                format!("{} (mode {mode:03o}) for {}", path.display(), context.controllers.join(", ")),
            )
        }
        Err(error) => failed("context", &error),
    }
}

fn is_local(controller: &str) -> bool {
    ["https://127.", "https://localhost", "https://[::1]"].iter().any(|start| controller.starts_with(start))
}

async fn remote(connection: &Connection) -> Vec<v1::Finding> {
    let who = connection.read(async || connection.fleet().who_am_i(v1::WhoAmIRequest {}).await).await;
    let who = match who {
        Ok(who) => who,
        Err(error) => return vec![failed("controller", &error)],
    };
    let message = format!("{} answers; you are {} ({})", connection.controller(), who.name, who.role);
    let mut findings = vec![finding("controller", true, message)];
    match connection.read(async || connection.patient_fleet().doctor(v1::DoctorRequest {}).await).await {
        Ok(answer) => findings.extend(answer.findings),
        Err(error) if error.exit() == Exit::DENIED => {
            let message = format!("not looked at: {error}");
            findings.push(v1::Finding { subject: "controller".into(), check: "hosts".into(), ok: true, message });
        }
        Err(error) => findings.push(failed("hosts", &error)),
    }
    findings
}

async fn engine(needed: bool) -> v1::Finding {
    let address = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".into());
    let Some(socket) = address.strip_prefix("unix://").map(str::to_owned) else {
        return finding("docker", true, format!("DOCKER_HOST is {address}: not looked at"));
    };
    let asked = tokio::task::spawn_blocking(move || ping(Path::new(&socket))).await;
    match asked.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        Ok(()) => finding("docker", true, format!("answers at {address}")),
        Err(error) if needed => {
            let advice = "start it (`systemctl start docker`), and see that you are in the group `docker`";
            finding("docker", false, format!("does not answer at {address}: {error}; {advice}"))
        }
        Err(_) => finding("docker", true, "does not answer here; only hosts need it"),
    }
}

fn ping(socket: &Path) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer)?;
    let line = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
    if line.split_whitespace().nth(1) == Some("200") {
        Ok(())
    } else {
        Err(std::io::Error::other(format!("it says {line:?}")))
    }
}

async fn git(needed: bool) -> v1::Finding {
    let output = tokio::process::Command::new("git").arg("--version").stdin(Stdio::null()).output().await;
    match output {
        Ok(output) if output.status.success() => {
            finding("git", true, String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        _ if needed => finding("git", false, "cannot be run; hosts need it: install the package `git`"),
        _ => finding("git", true, "cannot be run here; only hosts need it"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_controller_on_this_machine_is_told_from_one_elsewhere() {
        assert!(
            is_local("https://127.0.0.1:7443") && is_local("https://localhost:1") && is_local("https://[::1]:7443")
        );
        assert!(!is_local("https://fleet.example.com:7443"));
    }

    #[test]
    fn an_engine_that_answers_with_an_error_is_not_fine() {
        let dir = tempfile::tempdir().expect("a directory");
        let answering = |answer: &'static [u8]| {
            let path = dir.path().join("socket");
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path).expect("bound");
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("accepted");
                let mut request = [0; 64];
                let _ = stream.read(&mut request).expect("read");
                stream.write_all(answer).expect("written");
            });
            let pinged = ping(&path);
            server.join().expect("ended");
            pinged
        };
        assert!(answering(b"HTTP/1.0 200 OK\r\n\r\nOK").is_ok());
        let refused = answering(b"HTTP/1.0 500 Internal Server Error\r\n\r\n").expect_err("refused").to_string();
        assert!(refused.contains("500"), "{refused}");
        assert!(ping(&dir.path().join("none")).is_err());
    }
}
