//! A repository elsewhere: its URL, its login, and what its refusals mean.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use devfleet_shared::secret::Secret;

use super::git::{Git, Outcome};
use super::{GitLogin, MirrorError, PUSH_WITHIN};

const MISSING: [&str; 7] = [
    "Repository not found",
    "returned error: 404",
    "does not appear to be a git repository",
    "does not exist",
    "repository not found",
    "' not found",
    "could not be found",
];

const REFUSED: [&str; 8] = [
    "Authentication failed",
    "could not read Username",
    "could not read Password",
    "terminal prompts disabled",
    "Access denied",
    "returned error: 401",
    "returned error: 403",
    "Permission denied",
];

const BROKEN_OFF: [&str; 18] = [
    "Could not resolve",
    "Failed to connect",
    "Connection refused",
    "onnection timed out",
    "Couldn't connect",
    "could not connect",
    "Connection reset",
    "Connection was reset",
    "hung up unexpectedly",
    "early EOF",
    "RPC failed",
    "unexpected disconnect",
    "returned error: 5",
    "returned error: 429",
    "Empty reply from server",
    "SSL",
    "Operation too slow",
    "No route to host",
];

/// A remote repository.
pub(super) struct Remote {
    url: String,
    login: Option<(Secret, Secret)>,
}

impl Remote {
    /// Checks the URL. A login in it would end up in process lists, so it is refused there.
    pub(super) fn new(url: &str, login: Option<&GitLogin>) -> Result<Remote, MirrorError> {
        let refuse = |rule| MirrorError::Url { url: without_userinfo(url), rule };
        let is_helper = url.split_once("::").is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_alphanumeric()));
        if url.is_empty() || url.starts_with('-') || is_helper || url.chars().any(|c| c.is_control() || c == ' ') {
            return Err(refuse("it is not a URL; use https://, http://, ssh://, file:// or a path"));
        }
        match url.split_once("://") {
            Some(("https" | "http", rest)) if rest.split('/').next().is_some_and(|host| host.contains('@')) => {
                return Err(refuse("it holds a login; use the project's git credential instead"));
            }
            Some(("ssh", rest)) if rest.starts_with('-') => return Err(refuse("its host name is not valid")),
            Some(("https" | "http" | "ssh" | "file", _)) => {}
            Some(_) => return Err(refuse("only https://, http://, ssh://, file:// and paths can be used")),
            None if url.starts_with('/') || url.contains(':') => {}
            None => return Err(refuse("a path must be absolute")),
        }
        let login = login.map(|login| {
            let pair = format!("{}:{}", login.username, login.password.expose());
            (login.password.clone(), Secret::new(STANDARD.encode(pair)))
        });
        Ok(Remote { url: url.to_owned(), login })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Returns the URL as it may be shown: there is no login in it.
    pub(super) fn shown(&self) -> &str {
        &self.url
    }

    /// The login as configuration, for the environment of one command and this server only. A redirect could carry it
    /// elsewhere, so none is followed.
    pub(super) fn config(&self) -> Vec<(String, String)> {
        let Some((_, basic)) = &self.login else { return Vec::new() };
        let Some((scheme, rest)) = self.url.split_once("://") else { return Vec::new() };
        if !["http", "https"].contains(&scheme) {
            return Vec::new();
        }
        let host = rest.split('/').next().unwrap_or_default();
        let header = format!("Authorization: Basic {}", basic.expose());
        vec![
            (format!("http.{scheme}://{host}/.extraHeader"), header),
            ("http.followRedirects".to_owned(), "false".to_owned()),
        ]
    }

    /// Returns what git and the remote said, without the login should it be among it.
    pub(super) fn clean(&self, outcome: &Outcome) -> String {
        let said = outcome.stdout.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"!"));
        let said: Vec<String> = said.map(|line| String::from_utf8_lossy(line).replace('\t', " ")).collect();
        let mut detail = outcome.detail();
        if !said.is_empty() {
            detail = format!("{}; {detail}", said.join("; "));
        }
        for secret in self.login.iter().flat_map(|(password, basic)| [password, basic]) {
            if !secret.expose().is_empty() {
                detail = detail.replace(secret.expose(), "[masked]");
            }
        }
        detail
    }

    /// Turns failure into the error that it means.
    pub(super) fn check(&self, verb: &str, outcome: Outcome) -> Result<(), MirrorError> {
        if outcome.is_success() {
            return Ok(());
        }
        let (url, detail) = (self.url.clone(), self.clean(&outcome));
        Err(if outcome.says(&REFUSED) {
            MirrorError::Auth { url, detail }
        } else if outcome.says(&MISSING) {
            MirrorError::NotFound { url, detail }
        } else if outcome.says(&["redirect", "returned error: 301", "returned error: 302", "returned error: 308"]) {
            MirrorError::NotFound { url, detail: format!("it has moved; use its new URL: {detail}") }
        } else if outcome.says(&BROKEN_OFF) {
            MirrorError::Unreachable { url, detail }
        } else {
            MirrorError::Git { action: format!("{verb} {url}"), detail }
        })
    }
}

/// Asks the remote where a branch stands.
pub(super) async fn branch(git: &Git, remote: &Remote, branch: &str) -> Result<Option<String>, MirrorError> {
    let name = format!("refs/heads/{branch}");
    let git = git.remote(remote).within(PUSH_WITHIN);
    let listed = git.run(&["ls-remote", "--", remote.url(), &name]).await?;
    let text = listed.text();
    remote.check("ask", listed)?;
    let found = text.lines().filter_map(|line| line.split_once('\t')).find(|(_, found)| *found == name);
    Ok(found.map(|(commit, _)| commit.to_owned()))
}

fn without_userinfo(url: &str) -> String {
    match (url.split_once("://"), url.split_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        (None, Some((_, rest))) => format!("…@{rest}"),
        _ => url.to_owned(),
    }
}
