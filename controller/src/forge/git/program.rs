//! Runs the `git` program, shut off from the machine's settings, with an end to its time and its output.
//!
//! A credential travels in the environment of the one process that needs it, as a setting for this repository's address
//! alone: never in an argument, never on disk, never to where a redirect points. Only bare repositories are worked on.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use base64::Engine as _;
use devfleet_shared::id::Digest;
use devfleet_shared::secret::Secret;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::super::ForgeError;
use super::super::text::one_line;

/// The most output that is read of one run.
const OUTPUT_LIMIT_BYTES: u64 = 32 << 20;
const ERRORS_LIMIT_BYTES: u64 = 64 << 10;
/// How much of what git says is looked at, in characters.
const SAID_CHARS: usize = 8_000;
/// How much of it stands in an error, in characters.
const DETAIL_CHARS: usize = 300;
/// What is passed on of our own environment.
const PASSED_ON: [&str; 8] =
    ["PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "http_proxy", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"];
/// What ssh needs besides.
const PASSED_ON_TO_SSH: [&str; 4] = ["HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK"];

/// How a run ended.
pub(super) struct Output {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    stderr: String,
}

/// A remote and the way in.
pub(super) struct Remote {
    pub(super) address: String,
    pub(super) login: Option<(String, Secret)>,
}

impl Remote {
    /// Says whether git reaches it through ssh: `ssh://…` or `user@host:path`.
    fn is_ssh(&self) -> bool {
        let scheme = self.address.split_once("://").map(|(scheme, _)| scheme);
        match scheme {
            Some(scheme) => scheme.contains("ssh"),
            None => !self.address.starts_with('/') && self.address.contains(':'),
        }
    }

    /// Returns the settings for one run, as `GIT_CONFIG_KEY_n` and `GIT_CONFIG_VALUE_n` carry them.
    fn settings(&self) -> Vec<(String, String)> {
        let mut settings: Vec<(String, String)> = [
            ("core.hooksPath", "/dev/null"),
            ("credential.helper", ""),
            ("http.followRedirects", "false"),
            ("http.lowSpeedLimit", "1000"),
            ("http.lowSpeedTime", "30"),
            ("transfer.bundleURI", "false"),
            ("fetch.fsckObjects", "true"),
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        if self.address.starts_with("http")
            && let Some(header) = self.authorization()
        {
            settings.push((format!("http.{}.extraHeader", self.address), header));
        }
        settings
    }

    /// Tells one credential from another: what the remote says to one is not for another.
    pub(super) fn login_digest(&self) -> Digest {
        let (name, password) = self.login.as_ref().map_or(("", ""), |(name, password)| (name, password.expose()));
        Digest::over([name.as_bytes(), password.as_bytes()])
    }

    fn authorization(&self) -> Option<String> {
        let (name, password) = self.login.as_ref()?;
        let pair = format!("{name}:{}", password.expose());
        Some(format!("Authorization: Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
    }

    /// Takes what is secret out of what git says.
    fn cleaned(&self, text: &str) -> String {
        let mut text = text.to_owned();
        if let (Some((_, password)), Some(header)) = (&self.login, self.authorization()) {
            let encoded = header.rsplit(' ').next().unwrap_or_default();
            for secret in [password.expose(), encoded] {
                if !secret.is_empty() {
                    text = text.replace(secret, "[secret]");
                }
            }
        }
        one_line(&text.replace(|c: char| c.is_control() && c != '\n', " "), SAID_CHARS)
    }
}

/// Runs git on the bare repository and waits for its end, or kills it when its time is over.
pub(super) async fn run(
    remote: &Remote,
    git_dir: &Path,
    arguments: &[&str],
    timeout: Duration,
) -> Result<Output, ForgeError> {
    let action = format!("run git {}", arguments.first().copied().unwrap_or_default());
    let failed = |error: std::io::Error| ForgeError::Refused {
        action: action.clone(),
        detail: format!("{error}; is git installed?"),
    };
    let mut child = command(remote, git_dir, arguments).spawn().map_err(failed)?;
    let mut group = Group(child.id());
    let finished = tokio::time::timeout(timeout, collect(&mut child)).await;
    let Ok(collected) = finished else {
        let detail = format!("no end after {} s", timeout.as_secs());
        return Err(ForgeError::Unavailable { action, detail, retry_after: None });
    };
    let (status, stdout, stderr) = collected.map_err(failed)?;
    group.0 = None;
    if stdout.len() as u64 > OUTPUT_LIMIT_BYTES {
        let detail = format!("the output is larger than {OUTPUT_LIMIT_BYTES} bytes");
        return Err(ForgeError::Refused { action, detail });
    }
    Ok(Output { status, stdout, stderr: remote.cleaned(&String::from_utf8_lossy(&stderr)) })
}

fn command(remote: &Remote, git_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.args(arguments).env_clear().current_dir("/");
    let passed_on = PASSED_ON.iter().chain(if remote.is_ssh() { PASSED_ON_TO_SSH.iter() } else { [].iter() });
    for name in passed_on {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    let settings = remote.settings();
    command
        .env("GIT_DIR", git_dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_ALLOW_PROTOCOL", "file:http:https:ssh")
        .env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes -oConnectTimeout=10")
        .env("GIT_NO_LAZY_FETCH", "1")
        .env("GIT_LITERAL_PATHSPECS", "1")
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_COUNT", settings.len().to_string());
    for (index, (name, value)) in settings.into_iter().enumerate() {
        command.env(format!("GIT_CONFIG_KEY_{index}"), name).env(format!("GIT_CONFIG_VALUE_{index}"), value);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
    command
}

/// Reads both outputs, then waits. More output than is wanted is left unread, which ends the program.
async fn collect(child: &mut Child) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = tokio::join!(async { bounded(stdout, OUTPUT_LIMIT_BYTES + 1).await }, async {
        bounded(stderr, ERRORS_LIMIT_BYTES).await
    });
    Ok((child.wait().await?, stdout?, stderr?))
}

async fn bounded(pipe: Option<impl AsyncRead + Unpin>, limit_bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(limit_bytes).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// A run's process group: git starts programs of its own, which must not outlive it.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.0.and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(leader) = leader {
            // It may have ended by itself just now.
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
    }
}

impl Output {
    /// Returns the output, or says why git failed.
    pub(super) fn success(self, action: &str, remote: &Remote) -> Result<Vec<u8>, ForgeError> {
        if self.status.success() { Ok(self.stdout) } else { Err(explain(action, &remote.address, &self.stderr)) }
    }
}

/// Puts git's words into ours. They are in English, because it runs with `LC_ALL=C`.
fn explain(action: &str, address: &str, said: &str) -> ForgeError {
    let says = |texts: &[&str]| texts.iter().any(|text| said.contains(text));
    let (action, detail) = (action.to_owned(), one_line(said, DETAIL_CHARS));
    if says(&[
        "Authentication failed",
        "could not read Username",
        "could not read Password",
        "error: 401",
        "Permission denied (publickey",
    ]) {
        ForgeError::Unauthorized { forge: address.to_owned(), detail }
    } else if says(&["error: 403", "access denied", "Access denied", "not allowed to"]) {
        ForgeError::Forbidden { action, detail, needs: "the right to read and push this repository".to_owned() }
    } else if says(&["error: 404", "not found", "does not exist", "does not appear to be a git repository"]) {
        ForgeError::NotFound { action, detail }
    } else if says(&[
        "error: 429",
        "error: 5",
        "Could not resolve host",
        "Couldn't connect",
        "Failed to connect",
        "onnection",
        "timed out",
        "hung up",
        "early EOF",
        "Empty reply",
        "RPC failed",
        "Operation too slow",
        ".lock': File exists",
    ]) {
        ForgeError::Unavailable { action, detail, retry_after: None }
    } else {
        ForgeError::Refused { action, detail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_says_becomes_an_error_of_ours() {
        let kind = |said: &str| match explain("fetch", "x", said) {
            ForgeError::Unauthorized { .. } => "unauthorized",
            ForgeError::Forbidden { .. } => "forbidden",
            ForgeError::NotFound { .. } => "not found",
            ForgeError::Unavailable { .. } => "unavailable",
            _ => "refused",
        };
        for (said, expected) in [
            ("fatal: Authentication failed for 'http://x/'", "unauthorized"),
            ("fatal: could not read Username for 'http://x': terminal prompts disabled", "unauthorized"),
            ("fatal: unable to access 'http://x/': The requested URL returned error: 403", "forbidden"),
            ("fatal: repository 'http://x/' not found", "not found"),
            ("fatal: '/x' does not appear to be a git repository", "not found"),
            ("fatal: unable to access 'http://x/': The requested URL returned error: 502", "unavailable"),
            ("fatal: unable to access 'http://x/': The requested URL returned error: 429", "unavailable"),
            ("fatal: unable to access 'http://x/': Could not resolve host: x", "unavailable"),
            ("fatal: transport 'ext' not allowed", "refused"),
        ] {
            assert_eq!(kind(said), expected, "{said}");
        }
    }

    #[test]
    fn a_login_is_set_for_its_own_address_and_cut_out_of_what_git_says() {
        let login = Some(("bot".to_owned(), Secret::new("canary-7d1")));
        let remote = Remote { address: "https://x.example/a.git".to_owned(), login };
        let settings = remote.settings();
        let (name, value) = settings.last().expect("there are settings");
        assert_eq!(name, "http.https://x.example/a.git.extraHeader");
        let encoded = value.strip_prefix("Authorization: Basic ").expect("a basic login");
        assert_eq!(remote.cleaned(&format!("no canary-7d1 and\nno {encoded}")), "no [secret] and no [secret]");
        assert!(!remote.is_ssh() && Remote { address: "git@x:a.git".to_owned(), login: None }.is_ssh());
        assert!(!Remote { address: "/srv/a:b.git".to_owned(), login: None }.is_ssh());
    }

    #[tokio::test]
    async fn a_run_that_hangs_is_killed_with_all_it_started() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("bind a port that never answers");
        let port = listener.local_addr().expect("it has an address").port();
        let remote = Remote { address: format!("http://127.0.0.1:{port}/hangs.git"), login: None };
        let here = tempfile::tempdir().expect("make a directory");
        let asked = run(&remote, here.path(), &["ls-remote", &remote.address], Duration::from_millis(400)).await;
        let error = asked.err().expect("it never ends");
        assert!(error.is_retryable() && error.to_string().contains("no end"), "{error}");
        let mut left = processes_with(&remote.address);
        for _ in 0..200 {
            if left.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            left = processes_with(&remote.address);
        }
        assert_eq!(left, Vec::<String>::new());
    }

    fn processes_with(text: &str) -> Vec<String> {
        let processes = std::fs::read_dir("/proc").expect("there is a /proc").flatten();
        let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
        lines.map(|line| String::from_utf8_lossy(&line).into_owned()).filter(|line| line.contains(text)).collect()
    }
}
