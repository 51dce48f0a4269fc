//! Any git remote: a server without an API, or a repository on disk.
//!
//! Branches are asked of the remote itself; files are read from a bare cache of our own, never from a work tree. A
//! merge request is a record in the store. There are no issues, so notes go nowhere.

mod known;
mod program;
mod records;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use devfleet_shared::backoff::Backoff;
use devfleet_shared::id::Digest;
use devfleet_shared::secret::Secret;

pub use records::merge_request_key;

use super::includes::{Files, gather};
use super::{Base, CiConfig, Forge, ForgeError, GitAccess, MergeRequest, MergeRequestDraft};
use crate::store::SharedStore;
use known::Known;
use program::{Output, Remote, run};

/// How long a question to the remote may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a fetch may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(600);
/// How often a remote that does not answer is asked.
const TRIES: u32 = 3;

/// Under which name the list of a commit's files is kept: no file is called so.
const LIST: &str = "\0";

/// Where the repository is and how to get in.
#[derive(Debug, Clone)]
pub struct PlainGitSettings {
    /// An address (`https`, `http`, `ssh`, `file`, `user@host:path`) or an absolute path.
    pub repository: String,
    /// The branch that work starts from; what the remote's HEAD names if it is not said.
    pub default_branch: Option<String>,
    /// User name and password or token, for http and https.
    pub login: Option<(String, Secret)>,
    /// The path of the CI configuration.
    pub ci_config_path: String,
}

/// A git remote.
pub struct PlainGit {
    remote: Remote,
    default_branch: Option<String>,
    ci_config_path: String,
    cache: PathBuf,
    known: Arc<Known>,
    store: SharedStore,
}

impl PlainGit {
    /// Makes it; nothing is asked of the remote yet. Fails when the repository's address is none that may be used.
    pub fn new(settings: PlainGitSettings, cache_dir: PathBuf, store: SharedStore) -> Result<Self, ForgeError> {
        check_address(&settings.repository).map_err(|detail| ForgeError::Refused {
            action: "use the repository's address".to_owned(),
            detail: detail.to_owned(),
        })?;
        let cache = cache_dir.join(format!("{}.git", Digest::of(settings.repository.as_bytes()).hex()));
        let known = Known::of(&cache);
        Ok(Self {
            remote: Remote { address: settings.repository, login: settings.login },
            default_branch: settings.default_branch,
            ci_config_path: settings.ci_config_path.trim_start_matches('/').to_owned(),
            cache,
            known,
            store,
        })
    }

    async fn git(&self, arguments: &[&str], timeout: Duration) -> Result<Output, ForgeError> {
        run(&self.remote, &self.cache, arguments, timeout).await
    }

    /// Runs git against the remote; what does not answer is asked again, a refused login never.
    async fn ask(&self, action: &str, arguments: &[&str], timeout: Duration) -> Result<Vec<u8>, ForgeError> {
        let pace = Backoff { first: Duration::from_millis(500), ceiling: Duration::from_secs(5) };
        let mut tries = 0;
        loop {
            let output = match self.git(arguments, timeout).await {
                Ok(output) => output.success(action, &self.remote),
                Err(error) => Err(error),
            };
            tries += 1;
            match output {
                Err(error) if error.is_retryable() && tries < TRIES => {
                    tokio::time::sleep(pace.pause(tries, Backoff::jitter())).await;
                }
                settled => return settled,
            }
        }
    }

    /// Makes the cache if it is not there.
    async fn prepare(&self) -> Result<(), ForgeError> {
        if self.cache.join("HEAD").exists() {
            return Ok(());
        }
        let failed = |error: std::io::Error| ForgeError::Refused {
            action: "make the git cache".to_owned(),
            detail: format!("{}: {error}", self.cache.display()),
        };
        tokio::fs::create_dir_all(&self.cache).await.map_err(failed)?;
        self.known.forget();
        let made = self.git(&["init", "--quiet", "--bare", "--template="], ASK_TIMEOUT).await?;
        made.success("make the git cache", &self.remote).map(drop)
    }

    /// Lists HEAD and one branch of the remote. Those who ask with the same credential share answers.
    async fn refs(&self, branch: Option<&str>) -> Result<Arc<Refs>, ForgeError> {
        let pattern = format!("refs/heads/{}", branch.unwrap_or("*"));
        let look = async {
            {
                let _alone = self.known.fetching.lock().await;
                self.prepare().await?;
            }
            let arguments = ["ls-remote", "--symref", "--end-of-options", &self.remote.address, "HEAD", &pattern];
            let output = self.ask("list the branches", &arguments, ASK_TIMEOUT).await?;
            Ok(Arc::new(Refs::parse(&String::from_utf8_lossy(&output))))
        };
        self.known.refs.ask(format!("{pattern} {}", self.remote.login_digest()), look).await
    }

    /// Makes sure that the cache has a commit.
    async fn fetch(&self, commit: &str) -> Result<(), ForgeError> {
        let no_commit = || ForgeError::NotFound {
            action: format!("fetch commit {commit}"),
            detail: "the repository has no such commit".to_owned(),
        };
        if !is_commit(commit) {
            return Err(no_commit());
        }
        if self.known.has(commit) && self.cache.join("HEAD").exists() {
            return Ok(());
        }
        let _alone = self.known.fetching.lock().await;
        self.prepare().await?;
        if self.has(commit).await? {
            return Ok(());
        }
        let address = self.remote.address.as_str();
        let plain = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"];
        let one = [&plain[..], &["--depth=1", "--end-of-options", address, commit]].concat();
        let alone = self.ask("fetch a commit", &one, FETCH_TIMEOUT).await;
        if alone.is_ok() && self.has(commit).await? {
            return Ok(());
        }
        if let Err(
            error @ (ForgeError::Unauthorized { .. } | ForgeError::Forbidden { .. } | ForgeError::Unavailable { .. }),
        ) = alone
        {
            return Err(error);
        }
        // An old server gives no single commits: take all branches, and look again.
        let all = [&plain[..], &["--end-of-options", address, "+refs/heads/*:refs/devfleet/heads/*"]].concat();
        self.ask("fetch the branches", &all, FETCH_TIMEOUT).await?;
        if self.has(commit).await? { Ok(()) } else { Err(no_commit()) }
    }

    async fn has(&self, commit: &str) -> Result<bool, ForgeError> {
        let tree = format!("{commit}^{{tree}}");
        let has = self.git(&["cat-file", "-e", &tree], ASK_TIMEOUT).await?.status.success();
        if has {
            self.known.note(commit);
        }
        Ok(has)
    }

    async fn blob(&self, commit: &str, path: &str) -> Result<Option<Vec<u8>>, ForgeError> {
        let path = path.trim_start_matches('/');
        if path.is_empty() || path.contains('\0') || path.split('/').any(|part| part == "..") {
            return Ok(None);
        }
        if let Some(content) = known::file(&self.cache, commit, path) {
            return Ok(content);
        }
        let content = self.blob_of_git(commit, path).await?;
        known::keep_file(&self.cache, commit, path, content.as_deref());
        Ok(content)
    }

    async fn blob_of_git(&self, commit: &str, path: &str) -> Result<Option<Vec<u8>>, ForgeError> {
        let output = self.git(&["ls-tree", "-z", "--full-tree", commit, "--", path], ASK_TIMEOUT).await?;
        let listed = output.success("look for a file", &self.remote)?;
        let listed = String::from_utf8_lossy(&listed);
        let entry = listed.split('\0').filter_map(|entry| entry.split_once('\t')).find(|(_, name)| *name == path);
        let facts: Vec<&str> = entry.map(|(facts, _)| facts.split(' ').collect()).unwrap_or_default();
        let [_mode, "blob", object] = facts.as_slice() else { return Ok(None) };
        let output = self.git(&["cat-file", "blob", object], ASK_TIMEOUT).await?;
        output.success("read a file", &self.remote).map(Some)
    }
}

#[async_trait]
impl Forge for PlainGit {
    async fn base(&self, branch: Option<&str>) -> Result<Base, ForgeError> {
        let named = branch.or(self.default_branch.as_deref());
        let no_branch = |branch: &str| ForgeError::NoSuchBranch { branch: branch.to_owned() };
        if let Some(name) = named.filter(|name| !is_branch(name)) {
            return Err(no_branch(name));
        }
        let refs = self.refs(named).await?;
        let refused = |detail: &str| ForgeError::Refused {
            action: "find the default branch".to_owned(),
            detail: detail.to_owned(),
        };
        let branch = match named {
            Some(name) => name.to_owned(),
            None if refs.heads.is_empty() => return Err(refused("the repository is empty; push a first commit")),
            None => refs
                .default
                .clone()
                .ok_or_else(|| refused("its HEAD names none; set the project's `default_branch`"))?,
        };
        let commit = refs.heads.get(&branch).cloned().ok_or_else(|| no_branch(&branch))?;
        Ok(Base { branch, commit })
    }

    async fn ci_config(&self, commit: &str) -> Result<CiConfig, ForgeError> {
        self.fetch(commit).await?;
        let path = &self.ci_config_path;
        let files = AtCommit { forge: self, commit };
        let missing = || ForgeError::NoCiConfig { path: path.clone(), commit: commit.to_owned() };
        gather(path, &files, Vec::new()).await?.ok_or_else(missing)
    }

    async fn read_file(&self, commit: &str, path: &str) -> Result<Option<Vec<u8>>, ForgeError> {
        self.fetch(commit).await?;
        self.blob(commit, path).await
    }

    async fn ci_variables(&self, _names: &[String]) -> Result<BTreeMap<String, Result<Secret, String>>, ForgeError> {
        Ok(BTreeMap::new())
    }

    async fn git_access(&self) -> Result<GitAccess, ForgeError> {
        Ok(GitAccess { url: self.remote.address.clone(), login: self.remote.login.clone() })
    }

    async fn ensure_merge_request(&self, draft: &MergeRequestDraft) -> Result<MergeRequest, ForgeError> {
        records::ensure(&self.store, &self.remote.address, draft).await
    }

    /// Succeeds and does nothing: a plain remote has no issues.
    async fn ensure_note(&self, _issue: u64, _marker: &str, _markdown: &str) -> Result<(), ForgeError> {
        Ok(())
    }

    async fn check(&self) -> Result<String, ForgeError> {
        let base = self.base(None).await?;
        Ok(format!("git repository {}, default branch {}", self.remote.address, base.branch))
    }
}

struct AtCommit<'a> {
    forge: &'a PlainGit,
    commit: &'a str,
}

#[async_trait]
impl Files for AtCommit<'_> {
    async fn read(&self, path: &str) -> Result<Option<Vec<u8>>, ForgeError> {
        self.forge.blob(self.commit, path).await
    }

    async fn list(&self) -> Result<Option<Vec<String>>, ForgeError> {
        let forge = self.forge;
        let output = match known::file(&forge.cache, self.commit, LIST).flatten() {
            Some(output) => output,
            None => {
                let arguments = ["ls-tree", "-r", "-z", "--full-tree", "--name-only", self.commit];
                let output = forge.git(&arguments, ASK_TIMEOUT).await?.success("list the files", &forge.remote)?;
                known::keep_file(&forge.cache, self.commit, LIST, Some(&output));
                output
            }
        };
        let paths = output.split(|&byte| byte == 0).filter(|path| !path.is_empty());
        Ok(Some(paths.map(|path| String::from_utf8_lossy(path).into_owned()).collect()))
    }
}

/// What `git ls-remote --symref` tells.
#[derive(Debug, Default)]
struct Refs {
    default: Option<String>,
    heads: BTreeMap<String, String>,
}

impl Refs {
    fn parse(text: &str) -> Self {
        let mut refs = Self::default();
        for (value, name) in text.lines().filter_map(|line| line.split_once('\t')) {
            match (value.strip_prefix("ref: refs/heads/"), name.strip_prefix("refs/heads/")) {
                (Some(branch), _) if name == "HEAD" => refs.default = Some(branch.to_owned()),
                (None, Some(branch)) if is_commit(value) => {
                    drop(refs.heads.insert(branch.to_owned(), value.to_owned()))
                }
                _ => {}
            }
        }
        refs
    }
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The rules of `git check-ref-format --branch`, and none that an option could be mistaken for.
fn is_branch(name: &str) -> bool {
    !name.is_empty()
        && name != "@"
        && !name.starts_with(['-', '/', '.'])
        && !name.ends_with(['/', '.'])
        && !["..", "//", "@{", "/."].iter().any(|text| name.contains(text))
        && !name.split('/').any(|part| part.ends_with(".lock"))
        && !name.chars().any(|c| c.is_control() || " ~^:?*[\\".contains(c))
}

fn check_address(address: &str) -> Result<(), &'static str> {
    let scheme = address.split_once("://").map(|(scheme, _)| scheme);
    let authority = address.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or_default());
    let user = authority.and_then(|authority| authority.rsplit_once('@')).map(|(user, _)| user);
    match scheme {
        _ if address.starts_with('-') || address.contains(char::is_control) || address.contains("::") => {
            Err("it must be an address or an absolute path")
        }
        Some("ssh") if user.is_some_and(|user| user.contains(':')) => Err("it holds a password; use a key"),
        Some("http" | "https") if user.is_some() => Err("it holds a credential; name that in `forge.password` instead"),
        Some("http" | "https" | "ssh" | "file") => Ok(()),
        Some(_) => Err("only https, http, ssh and file are used"),
        None if Path::new(address).is_absolute() => Ok(()),
        None if address.contains(':') => Ok(()),
        None => Err("it must be an address or an absolute path"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_git_could_take_for_something_else_are_refused() {
        for good in ["main", "feature/x", "devfleet/1b4e28ba-a3f91c20", "é"] {
            assert!(is_branch(good), "{good}");
        }
        for bad in ["", "-x", "--upload-pack=x", "a..b", "a b", "a:b", "a*", "x.lock", "/a", "a/", "a\n", "@{u}", "@"] {
            assert!(!is_branch(bad), "{bad}");
        }
        for good in ["/srv/a.git", "https://x/a.git", "http://x:1/a", "ssh://git@x/a", "file:///a", "git@x:a.git"] {
            assert_eq!(check_address(good), Ok(()), "{good}");
        }
        let bad =
            ["-x", "ext::sh -c x", "ftp://x/a", "https://u:p@x/a", "https://u@x/a", "ssh://u:p@x/a", "a/b", "/a\nb"];
        for bad in bad {
            assert!(check_address(bad).is_err(), "{bad}");
        }
        assert!(is_commit(&"a".repeat(40)) && !is_commit("HEAD") && !is_commit(&"-".repeat(40)));
    }

    #[test]
    fn a_listing_tells_the_default_branch_and_the_heads() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let refs =
            Refs::parse(&format!("ref: refs/heads/main\tHEAD\n{a}\tHEAD\n{a}\trefs/heads/main\n{b}\trefs/tags/x\n"));
        assert_eq!((refs.default.as_deref(), refs.heads.get("main")), (Some("main"), Some(&a)));
        assert_eq!(refs.heads.len(), 1);
    }
}
