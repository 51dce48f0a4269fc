//! GitLab through its API v4.
//!
//! Whatever makes something looks first whether it is there, and looks again when the answer was lost: so a merge
//! request and a note are made once, whoever crashes when. GitLab's answer 409 settles races about merge requests.

mod answers;
mod client;
mod config;
mod variables;

use std::collections::BTreeMap;

use async_trait::async_trait;
use devfleet_shared::secret::Secret;
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::sleep;

pub use client::Pace;

use super::text::{cap, guard_lines, one_line};
use super::{Base, CiConfig, Forge, ForgeError, GitAccess, MergeRequest, MergeRequestDraft};
use answers::{Branch, MergeRequestAnswer, Note, OwnToken, Project, Version};
use client::{Answer, Call, Client};

const READS: &str = "the scope read_api or api, and the role Reporter or more in the project";
const WRITES: &str = "the scope api, and the role Developer or more in the project";
const DEVELOPER: u64 = 30;
/// Where GitLab looks unless a project says otherwise.
pub const DEFAULT_CI_CONFIG: &str = ".gitlab-ci.yml";
/// The most pages of notes that are looked through, of 100 notes each.
const MAX_PAGES: usize = 100;
const NOTE_BYTES: usize = 900_000;
const DESCRIPTION_BYTES: usize = 1_000_000;

/// Where a project is and how to get in.
#[derive(Debug, Clone)]
pub struct GitLabSettings {
    /// The address of the GitLab, with a path if it lives under one: `https://gitlab.example.org`.
    pub url: String,
    /// The project: `group/name`, or its number.
    pub project: String,
    /// A personal, project or group access token. None: only public projects, read only.
    pub token: Option<Secret>,
    /// The path of the CI configuration; [`DEFAULT_CI_CONFIG`] follows what the project itself has set.
    pub ci_config_path: String,
}

/// A project on a GitLab.
pub struct GitLab {
    client: Client,
    project: String,
    ci_config_path: String,
    /// Held while a note is looked for and made: GitLab would make two for two that look at once.
    noting: Mutex<()>,
}

impl GitLab {
    /// Makes it; nothing is asked of GitLab yet. Fails when the address is none.
    pub fn new(settings: GitLabSettings) -> Result<Self, ForgeError> {
        Self::with_pace(settings, Pace::default())
    }

    /// Makes it with a pace of its own.
    pub fn with_pace(settings: GitLabSettings, pace: Pace) -> Result<Self, ForgeError> {
        let client = Client::new(&settings.url, settings.token, pace)?;
        let project = settings.project.trim_matches('/').to_owned();
        Ok(Self { client, project, ci_config_path: settings.ci_config_path, noting: Mutex::new(()) })
    }

    fn call<'a>(&self, action: impl Into<String>, segments: &[&str], query: &[(&str, &str)]) -> Call<'a> {
        let path = [&["projects", self.project.as_str()], segments].concat();
        let url = self.client.url(&path, query);
        Call { action: action.into(), needs: READS, method: Method::GET, url, body: None }
    }

    async fn read<T: DeserializeOwned>(&self, call: &Call<'_>) -> Result<T, ForgeError> {
        parse(call, &self.client.send(call).await?)
    }

    async fn project(&self) -> Result<Project, ForgeError> {
        self.read(&self.call(format!("find project {}", self.project), &[], &[])).await
    }

    /// Finds the merge request of this source branch: an open one before one that was merged or closed, for a person
    /// may have been quicker than we were at asking again.
    async fn find(&self, draft: &MergeRequestDraft) -> Result<Option<MergeRequest>, ForgeError> {
        let query = [
            ("source_branch", draft.source_branch.as_str()),
            ("target_branch", draft.target_branch.as_str()),
            ("state", "all"),
            ("per_page", "100"),
        ];
        let call =
            self.call(format!("look for the merge request of {}", draft.source_branch), &["merge_requests"], &query);
        let mut found: Vec<MergeRequestAnswer> = self.read(&call).await?;
        found.retain(|answer| {
            answer.source_branch.as_ref().is_none_or(|branch| *branch == draft.source_branch)
                && answer.target_branch.as_ref().is_none_or(|branch| *branch == draft.target_branch)
                && (answer.source_project_id.is_none() || answer.source_project_id == answer.target_project_id)
        });
        found.sort_by_key(|answer| answer.state.as_deref() != Some("opened"));
        Ok(found.into_iter().find_map(|answer| merge_request(answer, draft)))
    }

    fn creation(&self, draft: &MergeRequestDraft) -> Call<'static> {
        let mut call = self.call(format!("open a merge request for {}", draft.source_branch), &["merge_requests"], &[]);
        call.method = Method::POST;
        call.needs = WRITES;
        call.body = Some(json!({
            "source_branch": draft.source_branch,
            "target_branch": draft.target_branch,
            "title": one_line(&draft.title, 255),
            "description": cap(&guard_lines(&draft.description), DESCRIPTION_BYTES),
        }));
        call
    }

    async fn has_note(&self, issue: &str, mark: &str) -> Result<bool, ForgeError> {
        let query = [("per_page", "100"), ("sort", "desc"), ("order_by", "created_at")];
        let mut call = self.call(format!("read the notes of issue #{issue}"), &["issues", issue, "notes"], &query);
        for _ in 0..MAX_PAGES {
            let answer = self.client.send(&call).await?;
            let notes: Vec<Note> = parse(&call, &answer)?;
            if notes.iter().any(|note| note.body.as_ref().is_some_and(|body| body.contains(mark))) {
                return Ok(true);
            }
            match answer.next_page().and_then(|address| self.client.own_url(address)) {
                Some(url) => call.url = url,
                None => break,
            }
        }
        Ok(false)
    }

    /// Says what the token may do, where GitLab tells: older ones, and other kinds of tokens, do not.
    async fn scopes(&self) -> Option<Vec<String>> {
        self.client.token()?;
        let url = self.client.url(&["personal_access_tokens", "self"], &[]);
        let action = "read the token's scopes".to_owned();
        let call = Call { action, needs: READS, method: Method::GET, url, body: None };
        self.read::<OwnToken>(&call).await.ok()?.scopes
    }

    fn check_rights(&self, project: &Project, scopes: Option<&[String]>) -> Result<(), ForgeError> {
        let forbidden = |detail: String| {
            let action = "open merge requests".to_owned();
            Err(ForgeError::Forbidden { action, detail, needs: WRITES.to_owned() })
        };
        if self.client.token().is_none() {
            let detail = "no token is set; name one in the project's `forge.token`".to_owned();
            return Err(ForgeError::Unauthorized { forge: self.client.origin(), detail });
        }
        if project.archived {
            let action = format!("use project {}", self.project);
            return Err(ForgeError::Refused { action, detail: "it is archived; unarchive it first".to_owned() });
        }
        if let Some(scopes) = scopes.filter(|scopes| !scopes.iter().any(|scope| scope == "api")) {
            return forbidden(format!("the token has only {}", scopes.join(", ")));
        }
        match project.permissions.level() {
            Some(level) if level < DEVELOPER => {
                forbidden(format!("its access level is {level}, a Developer has {DEVELOPER}"))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Forge for GitLab {
    async fn base(&self, branch: Option<&str>) -> Result<Base, ForgeError> {
        let branch = match branch {
            Some(branch) => branch.to_owned(),
            None => self.project().await?.default_branch.ok_or_else(|| ForgeError::Refused {
                action: "find the default branch".to_owned(),
                detail: "the repository is empty, or the token may not see its code; push a first commit".to_owned(),
            })?,
        };
        let call = self.call(format!("find branch {branch}"), &["repository", "branches", &branch], &[]);
        let answer: Branch = match self.read(&call).await {
            Err(ForgeError::NotFound { .. }) => {
                // The project's own 404 tells the two apart, in whatever language the message is.
                self.project().await?;
                return Err(ForgeError::NoSuchBranch { branch });
            }
            other => other?,
        };
        let commit =
            answer.commit.id.filter(|commit| is_commit(commit)).ok_or_else(|| unreadable(&call, "no commit"))?;
        Ok(Base { branch: answer.name.unwrap_or(branch), commit })
    }

    async fn ci_config(&self, commit: &str) -> Result<CiConfig, ForgeError> {
        config::read(self, commit).await
    }

    async fn read_file(&self, commit: &str, path: &str) -> Result<Option<Vec<u8>>, ForgeError> {
        let segments = ["repository", "files", path.trim_start_matches('/'), "raw"];
        let call = self.call(format!("read {path} at {commit}"), &segments, &[("ref", commit)]);
        match self.client.send(&call).await.map_err(ForgeError::from) {
            Ok(answer) => Ok(Some(answer.body)),
            Err(ForgeError::NotFound { detail, .. }) if detail.to_ascii_lowercase().contains("file") => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn ci_variables(&self, names: &[String]) -> Result<BTreeMap<String, Result<Secret, String>>, ForgeError> {
        variables::read(self, names).await
    }

    async fn git_access(&self) -> Result<GitAccess, ForgeError> {
        let url = self.project().await?.http_url_to_repo.unwrap_or_default();
        let refused =
            |detail: &str| ForgeError::Refused { action: "reach the repository".to_owned(), detail: detail.to_owned() };
        if url.is_empty() {
            return Err(refused("GitLab names no HTTP address for it; let it offer git over HTTP(S)"));
        }
        if self.client.origin().starts_with("https:") && !url.starts_with("https:") {
            return Err(refused("GitLab names an address without TLS for it; set its external URL to https://"));
        }
        let login = self.client.token().map(|token| ("oauth2".to_owned(), token.clone()));
        Ok(GitAccess { url, login })
    }

    async fn ensure_merge_request(&self, draft: &MergeRequestDraft) -> Result<MergeRequest, ForgeError> {
        let creation = self.creation(draft);
        let mut tries = 0;
        loop {
            if let Some(found) = self.find(draft).await? {
                return Ok(found);
            }
            let made = match self.client.send(&creation).await {
                Ok(answer) => parse(&creation, &answer)
                    .and_then(|answer| merge_request(answer, draft).ok_or_else(|| unreadable(&creation, "no number"))),
                Err(failure) if failure.status.is_some_and(|status| status.as_u16() == 409) => {
                    return self.find(draft).await?.ok_or(failure.error);
                }
                Err(failure) => Err(failure.error),
            };
            tries += 1;
            match made {
                Err(error) if error.is_retryable() && tries < self.client.pace.tries => {
                    let pause = self.client.pause(tries, &error);
                    if pause > self.client.pace.longest_wait {
                        return Err(error);
                    }
                    sleep(pause).await;
                }
                Err(error) if error.is_retryable() => return self.find(draft).await?.ok_or(error),
                settled => return settled,
            }
        }
    }

    async fn ensure_note(&self, issue: u64, marker: &str, markdown: &str) -> Result<(), ForgeError> {
        let _alone = self.noting.lock().await;
        let mark = mark(marker);
        let issue = issue.to_string();
        let mut creation = self.call(format!("put a note on issue #{issue}"), &["issues", &issue, "notes"], &[]);
        creation.method = Method::POST;
        creation.needs = WRITES;
        creation.body = Some(json!({ "body": format!("{}\n\n{mark}", cap(&guard_lines(markdown), NOTE_BYTES)) }));
        let mut tries = 0;
        while !self.has_note(&issue, &mark).await? {
            tries += 1;
            match self.client.send(&creation).await {
                Ok(_) => break,
                Err(failure) if failure.error.is_retryable() && tries < self.client.pace.tries => {
                    let pause = self.client.pause(tries, &failure.error);
                    if pause > self.client.pace.longest_wait {
                        return Err(failure.error);
                    }
                    sleep(pause).await;
                }
                Err(failure) => return Err(failure.error),
            }
        }
        Ok(())
    }

    async fn check(&self) -> Result<String, ForgeError> {
        let project = self.project().await?;
        let scopes = self.scopes().await;
        self.check_rights(&project, scopes.as_deref())?;
        let url = self.client.url(&["version"], &[]);
        let action = "read GitLab's version".to_owned();
        let call = Call { action, needs: READS, method: Method::GET, url, body: None };
        let version = self.read::<Version>(&call).await.ok().and_then(|answer| answer.version);
        Ok(format!(
            "GitLab {} at {}, project {} (number {}), default branch {}",
            version.as_deref().unwrap_or("of unknown version"),
            self.client.origin(),
            project.path_with_namespace.as_deref().unwrap_or(&self.project),
            project.id.unwrap_or_default(),
            project.default_branch.as_deref().unwrap_or("(none)"),
        ))
    }
}

/// Writes the hidden comment by which a note is found again.
fn mark(marker: &str) -> String {
    let safe: String = marker.chars().filter(|c| c.is_ascii_alphanumeric() || ":._/-".contains(*c)).collect();
    format!("<!-- devfleet:{} -->", safe.replace("--", "-"))
}

fn merge_request(answer: MergeRequestAnswer, draft: &MergeRequestDraft) -> Option<MergeRequest> {
    Some(MergeRequest {
        number: answer.iid?,
        url: answer.web_url.unwrap_or_default(),
        title: answer.title.unwrap_or_else(|| draft.title.clone()),
        description: answer.description.unwrap_or_default(),
        source_branch: draft.source_branch.clone(),
        target_branch: draft.target_branch.clone(),
        commit: answer.sha.unwrap_or_else(|| draft.commit.clone()),
    })
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn parse<T: DeserializeOwned>(call: &Call, answer: &Answer) -> Result<T, ForgeError> {
    serde_json::from_slice(&answer.body).map_err(|error| unreadable(call, &error.to_string()))
}

/// An answer that is not GitLab's: a proxy's page perhaps, so it may pass.
fn unreadable(call: &Call, detail: &str) -> ForgeError {
    ForgeError::Unavailable {
        action: call.action.clone(),
        detail: format!("its answer cannot be read: {detail}; check that the project's `forge.url` is a GitLab"),
        retry_after: None,
    }
}
