//! Bare mirrors of the projects' repositories: fetched from the forge, read by jobs, pushed from.
//!
//! forge ─fetch─▶ <key>/mirror.git ─read-only─▶ checkout step        a job's bundle ─checks─▶ <key>/work/<branch>.git ─push─▶ forge
//!
//! git runs only in bare repositories that we made, never in a tree that a job wrote. What a job left goes into a
//! repository of its own that borrows the mirror's objects, so it never becomes visible to other jobs. Nothing is ever
//! collected: objects that a container reads right now stay.

mod bundle;
mod git;
mod locks;
mod remote;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use devfleet_shared::assignment::mirror_key;
use devfleet_shared::id::Digest;
use devfleet_shared::secret::Secret;
use tracing::{info, warn};

use git::{Git, Outcome};
use locks::Locks;
use remote::Remote;

/// How long fetching a repository may take.
const FETCH_WITHIN: Duration = Duration::from_secs(30 * 60);

/// How long a push, or asking the remote for a branch, may take.
const PUSH_WITHIN: Duration = Duration::from_secs(10 * 60);

/// How long work on local objects may take.
const LOCAL_WITHIN: Duration = Duration::from_secs(5 * 60);

/// The longest bundle that is taken in, in bytes, whatever the caller allows.
const BUNDLE_LIMIT_BYTES: u64 = 1024 * 1024 * 1024;

/// A user name and password for a git server.
#[derive(Debug, Clone)]
pub struct GitLogin {
    /// The user name.
    pub username: String,
    /// The password or token.
    pub password: Secret,
}

/// A work branch that was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Its commit.
    pub commit: String,
    /// What it changes, as `git diff` shows it; 1 MiB at most.
    pub diff: String,
    /// Whether the diff was longer.
    pub diff_truncated: bool,
}

/// Why a verb failed. No message holds a login.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The URL cannot be used.
    #[error("use repository {url}: {rule}")]
    Url {
        /// The URL, without what might be a password.
        url: String,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// A commit or branch name is not one.
    #[error("use {what} {value:?}: it is not a valid one")]
    Name {
        /// What was to be named.
        what: &'static str,
        /// The text.
        value: String,
    },
    /// There is no such repository.
    #[error("reach repository {url}: it does not exist, or this login may not see it ({detail})")]
    NotFound {
        /// The repository.
        url: String,
        /// What git said.
        detail: String,
    },
    /// The server does not accept the login.
    #[error("reach repository {url}: the server refuses the login; check the project's git credential ({detail})")]
    Auth {
        /// The repository.
        url: String,
        /// What git said.
        detail: String,
    },
    /// The server cannot be reached, or broke off.
    #[error("reach repository {url}: {detail}")]
    Unreachable {
        /// The repository.
        url: String,
        /// What git said.
        detail: String,
    },
    /// It took too long.
    #[error("{action}: git was not done within {} s", after.as_secs())]
    Timeout {
        /// What was tried.
        action: String,
        /// How long was waited.
        after: Duration,
    },
    /// The repository has no such commit.
    #[error("find commit {commit} in repository {url}: it is not there; was its branch rewritten?")]
    CommitNotFound {
        /// The repository.
        url: String,
        /// The commit.
        commit: String,
    },
    /// What the job left is not a bundle that we take.
    #[error("take in the job's bundle: {detail}")]
    BundleRejected {
        /// What is wrong with it.
        detail: String,
    },
    /// The job left the base commit as it was.
    #[error("take in the job's bundle: it changes nothing")]
    NoChange,
    /// The remote refused the branch, or has other work under its name.
    #[error("push branch {branch}: {detail}")]
    PushRejected {
        /// The branch.
        branch: String,
        /// What the remote said.
        detail: String,
    },
    /// git failed in some other way.
    #[error("{action}: git says: {detail}")]
    Git {
        /// What was tried.
        action: String,
        /// What it said.
        detail: String,
    },
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl MirrorError {
    /// Says whether the same call may go well later.
    pub fn is_retryable(&self) -> bool {
        match self {
            MirrorError::Unreachable { .. } | MirrorError::Timeout { .. } | MirrorError::File { .. } => true,
            MirrorError::Url { .. }
            | MirrorError::Name { .. }
            | MirrorError::NotFound { .. }
            | MirrorError::Auth { .. }
            | MirrorError::CommitNotFound { .. }
            | MirrorError::BundleRejected { .. }
            | MirrorError::NoChange
            | MirrorError::PushRejected { .. }
            | MirrorError::Git { .. } => false,
        }
    }
}

fn on<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> MirrorError + 'a {
    move |source| MirrorError::File { action, path: path.to_owned(), source }
}

/// The mirrors of this host. Cheap to clone.
#[derive(Clone)]
pub struct Mirrors {
    root: PathBuf,
    locks: Arc<Locks>,
    bundle_limit_bytes: u64,
}

/// One repository's folder.
struct Place {
    dir: PathBuf,
    mirror: PathBuf,
}

impl Mirrors {
    /// Keeps mirrors under this folder.
    pub fn new(root: PathBuf) -> Mirrors {
        Mirrors { root, locks: Arc::default(), bundle_limit_bytes: BUNDLE_LIMIT_BYTES }
    }

    /// Takes in shorter bundles only.
    pub fn with_bundle_limit(self, bundle_limit_bytes: u64) -> Mirrors {
        Mirrors { bundle_limit_bytes, ..self }
    }

    /// Makes or brings up to date the mirror of a repository until it has the commit; returns its folder.
    ///
    /// One call per repository works at a time. A mirror that has the commit is not fetched; a damaged one is set
    /// aside and made anew.
    pub async fn fetch(&self, url: &str, login: Option<&GitLogin>, commit: &str) -> Result<PathBuf, MirrorError> {
        let remote = Remote::new(url, login)?;
        check_commit(commit)?;
        let place = self.place(url);
        let _lock = self.locks.lock(&place.dir, FETCH_WITHIN).await?;
        let known = place.mirror.exists();
        make(&place.mirror, &self.root).await?;
        let Err(error) = self.fetch_into(&place, &remote, commit).await else { return Ok(place.mirror) };
        if !known || !self.is_damaged(&place, &error).await? {
            return Err(error);
        }
        warn!(url = remote.shown(), error = %error, "a mirror is damaged; it is made anew");
        set_aside(&place.mirror)?;
        make(&place.mirror, &self.root).await?;
        self.fetch_into(&place, &remote, commit).await?;
        Ok(place.mirror)
    }

    /// Says whether the mirror itself is the reason of a failure that does not say so.
    async fn is_damaged(&self, place: &Place, error: &MirrorError) -> Result<bool, MirrorError> {
        if !matches!(error, MirrorError::Git { .. } | MirrorError::CommitNotFound { .. }) {
            return Ok(false);
        }
        let check = ["fsck", "--connectivity-only", "--no-dangling", "--no-progress"];
        let git = Git::new(&place.mirror, &self.root).within(FETCH_WITHIN);
        Ok(!git.run(&check).await?.is_success())
    }

    async fn fetch_into(&self, place: &Place, remote: &Remote, commit: &str) -> Result<(), MirrorError> {
        let git = Git::new(&place.mirror, &self.root);
        if has(&git, commit).await? {
            return Ok(());
        }
        let branches =
            ["fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--force", "--", remote.url()];
        let refs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
        let fetched = git.remote(remote).within(FETCH_WITHIN).run(branches.iter().chain(&refs)).await?;
        remote.check("fetch", fetched)?;
        if !has(&git, commit).await? {
            let alone = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", remote.url(), commit];
            let fetched = git.remote(remote).within(FETCH_WITHIN).run(&alone).await?;
            if fetched.says(&["not our ref", "unadvertised object", "couldn't find remote ref", "no such remote ref"]) {
                return Err(MirrorError::CommitNotFound { url: remote.shown().to_owned(), commit: commit.to_owned() });
            }
            remote.check("fetch", fetched)?;
        }
        if !has(&git, commit).await? {
            return Err(MirrorError::CommitNotFound { url: remote.shown().to_owned(), commit: commit.to_owned() });
        }
        info!(url = remote.shown(), commit, "mirror has the commit");
        // Keeps a commit that no branch leads to any more, and shows it to clones.
        let name = format!("refs/devfleet/{commit}");
        git.run(&["update-ref", &name, commit]).await?.ok("keep the commit")
    }

    /// Returns what git calls the content of these paths at a commit that the mirror has; what is not there is left out.
    pub async fn objects(
        &self,
        url: &str,
        commit: &str,
        paths: &[String],
    ) -> Result<BTreeMap<String, String>, MirrorError> {
        check_commit(commit)?;
        if paths.is_empty() {
            return Ok(BTreeMap::new());
        }
        let git = Git::new(&self.place(url).mirror, &self.root);
        let args = ["ls-tree", "-z", "--full-tree", commit, "--"].into_iter().chain(paths.iter().map(String::as_str));
        let listed = git.run(args).await?;
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        listed.ok("look for files of the commit")?;
        // "<mode> <type> <object>\t<path>"
        let entries = text.split('\0').filter_map(|entry| entry.split_once('\t'));
        Ok(entries.filter_map(|(head, path)| Some((path.to_owned(), head.rsplit(' ').next()?.to_owned()))).collect())
    }

    /// Takes in the bundle that a job left, after checking it, as `work_branch`.
    ///
    /// The mirror must have `base_commit` (see [`Mirrors::fetch`]). Fails with `NoChange` if the bundle's commit is the
    /// base commit.
    pub async fn import(
        &self,
        url: &str,
        base_commit: &str,
        bundle: &Path,
        work_branch: &str,
    ) -> Result<Imported, MirrorError> {
        check_commit(base_commit)?;
        check_branch(work_branch)?;
        let place = self.place(url);
        let work = place.work(work_branch);
        let _turn = self.locks.turn(&work).await;
        if !Git::new(&place.mirror, &self.root).has_folder() {
            return Err(MirrorError::CommitNotFound { url: url.to_owned(), commit: base_commit.to_owned() });
        }
        place.remove_old_work();
        remove(&work)?;
        make(&work, &self.root).await?;
        let borrowed = work.join("objects/info/alternates");
        let objects = place.mirror.join("objects");
        std::fs::write(&borrowed, format!("{}\n", objects.display())).map_err(on("write", &borrowed))?;
        let git = Git::new(&work, &self.root);
        if !has(&git, base_commit).await? {
            return Err(MirrorError::CommitNotFound { url: url.to_owned(), commit: base_commit.to_owned() });
        }
        let commit = bundle::take_in(&git, bundle, self.bundle_limit_bytes).await?;
        let imported = bundle::accept(&git, base_commit, &commit).await?;
        let name = format!("refs/devfleet/{work_branch}");
        git.run(&["update-ref", &name, &commit]).await?.ok("name the work branch")?;
        Ok(imported)
    }

    /// Pushes exactly this commit as exactly this branch, which must not exist yet.
    ///
    /// Already there with the same commit is success, so a push whose answer was lost is simply made again. Other
    /// work under that name is never overwritten: `PushRejected`.
    pub async fn push(
        &self,
        url: &str,
        login: Option<&GitLogin>,
        commit: &str,
        work_branch: &str,
    ) -> Result<(), MirrorError> {
        let remote = Remote::new(url, login)?;
        check_commit(commit)?;
        check_branch(work_branch)?;
        let place = self.place(url);
        let work = place.work(work_branch);
        let _turn = self.locks.turn(&work).await;
        let git = match work.exists() {
            true => Git::new(&work, &self.root),
            false => {
                let _lock = self.locks.lock(&place.dir, FETCH_WITHIN).await?;
                make(&place.mirror, &self.root).await?;
                Git::new(&place.mirror, &self.root)
            }
        };
        match remote::branch(&git, &remote, work_branch).await? {
            Some(there) if there == commit => return remove(&work),
            Some(there) => return Err(taken(work_branch, &there)),
            None => {}
        }
        if !has(&git, commit).await? {
            return Err(MirrorError::CommitNotFound { url: url.to_owned(), commit: commit.to_owned() });
        }
        let lease = format!("--force-with-lease=refs/heads/{work_branch}:");
        let what = format!("{commit}:refs/heads/{work_branch}");
        let args = ["push", "--porcelain", "--no-verify", "--no-follow-tags", &lease, "--", remote.url(), &what];
        let pushed = git.remote(&remote).within(PUSH_WITHIN).run(&args).await?;
        if pushed.says(&["[rejected]", "[remote rejected]", "cannot lock ref"]) {
            return match remote::branch(&git, &remote, work_branch).await? {
                Some(there) if there == commit => remove(&work),
                Some(there) => Err(taken(work_branch, &there)),
                None => {
                    Err(MirrorError::PushRejected { branch: work_branch.to_owned(), detail: remote.clean(&pushed) })
                }
            };
        }
        remote.check("push", pushed)?;
        info!(url = remote.shown(), commit, branch = work_branch, "work branch pushed");
        remove(&work)
    }

    /// Forgets a work branch that was taken in and will not be pushed. Safe to repeat.
    pub async fn forget(&self, url: &str, work_branch: &str) -> Result<(), MirrorError> {
        check_branch(work_branch)?;
        let work = self.place(url).work(work_branch);
        let _turn = self.locks.turn(&work).await;
        remove(&work)
    }

    fn place(&self, url: &str) -> Place {
        let dir = self.root.join(mirror_key(url));
        Place { mirror: dir.join("mirror.git"), dir }
    }
}

impl Place {
    fn work(&self, branch: &str) -> PathBuf {
        let key = Digest::of(branch.as_bytes());
        self.dir.join("work").join(format!("{}.git", &key.as_str()["sha256:".len()..][..24]))
    }

    /// Removes what attempts left that never pushed, after three days.
    fn remove_old_work(&self) {
        let Ok(entries) = std::fs::read_dir(self.dir.join("work")) else { return };
        for entry in entries.flatten().filter(|entry| entry.path().extension().is_some_and(|it| it == "git")) {
            let age = entry.metadata().and_then(|found| found.modified()).ok().and_then(|time| time.elapsed().ok());
            if age.is_some_and(|age| age > Duration::from_secs(3 * 24 * 3600)) {
                _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn taken(branch: &str, there: &str) -> MirrorError {
    let detail = format!("the remote has this branch already, at {there}, and it is not overwritten");
    MirrorError::PushRejected { branch: branch.to_owned(), detail }
}

/// Makes an empty bare repository, whole or not at all. Others may read it, whatever our umask: containers do.
async fn make(path: &Path, root: &Path) -> Result<(), MirrorError> {
    if path.join("HEAD").exists() {
        return Ok(());
    }
    remove(path)?;
    let fresh = path.with_extension("fresh");
    remove(&fresh)?;
    std::fs::create_dir_all(&fresh).map_err(on("make folder", &fresh))?;
    let git = Git::new(&fresh, root);
    git.run(&["init", "--quiet", "--bare", "--template=", "--shared=0644", "--initial-branch=devfleet-none"])
        .await?
        .ok("make a repository")?;
    for (name, value) in [("uploadpack.allowAnySHA1InWant", "true"), ("gc.auto", "0"), ("maintenance.auto", "false")] {
        git.run(&["config", name, value]).await?.ok("set up a repository")?;
    }
    let info = fresh.join("objects/info");
    std::fs::create_dir_all(&info).map_err(on("make folder", &info))?;
    std::fs::rename(&fresh, path).map_err(on("make folder", path))
}

/// Says whether the repository has a commit and its whole tree listing.
async fn has(git: &Git, commit: &str) -> Result<bool, MirrorError> {
    if !git.run(&["cat-file", "-e", &format!("{commit}^{{commit}}")]).await?.is_success() {
        return Ok(false);
    }
    git.quiet().run(&["ls-tree", "-r", "-t", "--name-only", commit]).await?.ok("read the commit's tree")?;
    Ok(true)
}

fn remove(path: &Path) -> Result<(), MirrorError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(on("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Moves a damaged mirror out of the way, and removes the one before it.
fn set_aside(mirror: &Path) -> Result<(), MirrorError> {
    let aside = mirror.with_extension("damaged");
    remove(&aside)?;
    std::fs::rename(mirror, &aside).map_err(on("set aside", mirror))
}

fn check_commit(commit: &str) -> Result<(), MirrorError> {
    let is_hex = commit.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    match is_hex && [40, 64].contains(&commit.len()) {
        true => Ok(()),
        false => Err(MirrorError::Name { what: "commit", value: commit.to_owned() }),
    }
}

/// Stricter than git: letters, digits, and `._-/` in the places where they do no harm.
fn check_branch(branch: &str) -> Result<(), MirrorError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let part = |part: &str| {
        !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with(['.']) && !part.ends_with(".lock")
    };
    let valid =
        branch.len() <= 200 && branch.chars().all(plain) && branch.split('/').all(part) && !branch.contains("..");
    match valid {
        true => Ok(()),
        false => Err(MirrorError::Name { what: "branch", value: branch.to_owned() }),
    }
}

impl Outcome {
    /// Turns failure into an error that names what was tried.
    fn ok(&self, action: &str) -> Result<(), MirrorError> {
        match self.is_success() {
            true => Ok(()),
            false => Err(MirrorError::Git { action: action.to_owned(), detail: self.detail() }),
        }
    }
}
