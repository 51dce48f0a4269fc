//! Running the git program: a bare repository of ours, nothing of the machine's configuration, no prompt, no hook.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::remote::Remote;
use super::{LOCAL_WITHIN, MirrorError, on};

/// How much of a command's output is kept, in bytes.
pub(super) const OUTPUT_BYTES: usize = 1024 * 1024;

/// Configuration that every command runs under.
const CONFIG: [(&str, &str); 23] = [
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.askPass", ""),
    ("credential.helper", ""),
    ("safe.bareRepository", "explicit"),
    ("protocol.allow", "never"),
    ("protocol.https.allow", "always"),
    ("protocol.http.allow", "always"),
    ("protocol.ssh.allow", "always"),
    ("protocol.file.allow", "always"),
    ("transfer.fsckObjects", "true"),
    // Old histories are full of these, and no harm comes of them.
    ("fetch.fsck.zeroPaddedFilemode", "warn"),
    ("fetch.fsck.missingSpaceBeforeDate", "warn"),
    ("fetch.fsck.badTimezone", "warn"),
    ("fetch.recurseSubmodules", "false"),
    ("push.recurseSubmodules", "no"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("http.lowSpeedLimit", "1000"),
    ("http.lowSpeedTime", "60"),
    ("pack.threads", "2"),
    ("diff.renameLimit", "400"),
    ("advice.detachedHead", "false"),
];

/// What of our own environment git may see: how to reach the network.
const PASSED: [&str; 12] = [
    "PATH",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "SSH_AUTH_SOCK",
];

/// git in one bare repository.
#[derive(Clone)]
pub(super) struct Git {
    dir: PathBuf,
    home: PathBuf,
    config: Vec<(String, String)>,
    within: Duration,
    keep_output: bool,
    input: Option<(PathBuf, u64)>,
}

/// How a command ended.
#[derive(Debug)]
pub(super) struct Outcome {
    status: Option<i32>,
    pub(super) stdout: Vec<u8>,
    /// There was more output than is kept.
    pub(super) truncated: bool,
    pub(super) stderr: String,
}

impl Outcome {
    pub(super) fn is_success(&self) -> bool {
        self.status == Some(0)
    }

    /// Says whether it failed saying one of these.
    pub(super) fn says(&self, phrases: &[&str]) -> bool {
        let out = String::from_utf8_lossy(&self.stdout);
        !self.is_success() && phrases.iter().any(|phrase| self.stderr.contains(phrase) || out.contains(phrase))
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Returns what it said, in one line.
    pub(super) fn detail(&self) -> String {
        let lines = self.stderr.lines().map(str::trim).filter(|line| !line.is_empty());
        let said = lines.collect::<Vec<_>>().join("; ");
        let shown: String = said.chars().filter(|c| !c.is_control()).take(2000).collect();
        match (shown.is_empty(), self.status) {
            (false, _) => shown,
            (true, Some(status)) => format!("nothing, and ends with status {status}"),
            (true, None) => "nothing; it was killed".to_owned(),
        }
    }
}

impl Git {
    /// `home` is a folder without any configuration of git, ssh or curl.
    pub(super) fn new(dir: &Path, home: &Path) -> Git {
        let (dir, home) = (dir.to_owned(), home.to_owned());
        Git { dir, home, config: Vec::new(), within: LOCAL_WITHIN, keep_output: true, input: None }
    }

    pub(super) fn has_folder(&self) -> bool {
        self.dir.join("HEAD").exists()
    }

    /// The same, with the remote's login in its environment.
    pub(super) fn remote(&self, remote: &Remote) -> Git {
        Git { config: remote.config(), ..self.clone() }
    }

    pub(super) fn within(self, within: Duration) -> Git {
        Git { within, ..self }
    }

    /// The same, without keeping its output.
    pub(super) fn quiet(&self) -> Git {
        Git { keep_output: false, ..self.clone() }
    }

    /// The same, reading a file from an offset on.
    pub(super) fn reading(&self, file: &Path, from: u64) -> Git {
        Git { input: Some((file.to_owned(), from)), ..self.clone() }
    }

    /// Runs a command to its end. Fails if git cannot be run, or takes too long; then it is killed with its children.
    pub(super) async fn run<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Result<Outcome, MirrorError> {
        let args: Vec<String> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let action = format!("run git {}", args.first().map_or("", String::as_str));
        let mut child = self.command(&args)?.spawn().map_err(on("run git in", &self.dir))?;
        let mut group = Group(child.id());
        match tokio::time::timeout(self.within, self.collect(&mut child)).await {
            Ok(outcome) => outcome.inspect(|_| group.0 = None).map_err(on("read from git in", &self.dir)),
            Err(_) => Err(MirrorError::Timeout { action, after: self.within }),
        }
    }

    fn command(&self, args: &[String]) -> Result<Command, MirrorError> {
        let mut command = Command::new("git");
        command.env_clear().envs(PASSED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.env("HOME", &self.home).env("XDG_CONFIG_HOME", &self.home).env("LC_ALL", "C");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_ATTR_NOSYSTEM", "1");
        command.env("GIT_TERMINAL_PROMPT", "0").env("GIT_ASKPASS", "").env("GIT_OPTIONAL_LOCKS", "0");
        command.env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=20");
        let config = CONFIG.iter().map(|(name, value)| (*name, *value));
        let config = config.chain(self.config.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let mut count = 0;
        for (name, value) in config {
            command.env(format!("GIT_CONFIG_KEY_{count}"), name).env(format!("GIT_CONFIG_VALUE_{count}"), value);
            count += 1;
        }
        command.env("GIT_CONFIG_COUNT", count.to_string());
        let mut place = OsString::from("--git-dir=");
        place.push(&self.dir);
        command.arg(place).args(args).current_dir(&self.dir);
        command.stdin(self.stdin()?).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        Ok(command)
    }

    fn stdin(&self) -> Result<Stdio, MirrorError> {
        use std::io::Seek as _;
        let Some((path, from)) = &self.input else { return Ok(Stdio::null()) };
        let mut file = std::fs::File::open(path).map_err(on("open", path))?;
        file.seek(std::io::SeekFrom::Start(*from)).map_err(on("read", path))?;
        Ok(Stdio::from(file))
    }

    async fn collect(&self, child: &mut Child) -> std::io::Result<Outcome> {
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let keep = if self.keep_output { OUTPUT_BYTES } else { 0 };
        let ((stdout, truncated), (stderr, _)) =
            tokio::try_join!(bounded(stdout, keep), bounded(stderr, OUTPUT_BYTES))?;
        let status = child.wait().await?.code();
        Ok(Outcome { status, stdout, truncated, stderr: String::from_utf8_lossy(&stderr).into_owned() })
    }
}

/// Reads to the end, keeping the first bytes.
async fn bounded(pipe: Option<impl AsyncRead + Unpin>, keep: usize) -> std::io::Result<(Vec<u8>, bool)> {
    let Some(mut pipe) = pipe else { return Ok((Vec::new(), false)) };
    let mut kept = Vec::new();
    let mut truncated = false;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = pipe.read(&mut buffer).await?;
        if read == 0 {
            return Ok((kept, truncated));
        }
        let room = (keep - kept.len()).min(read);
        kept.extend_from_slice(&buffer[..room]);
        truncated |= room < read;
    }
}

/// Kills git and its children when the caller does not wait any longer.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|id| Pid::from_raw(id as i32)) {
            // Fails if all of them have ended, which is what is wanted.
            _ = kill_process_group(pid, Signal::KILL);
        }
    }
}
