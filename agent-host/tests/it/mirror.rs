//! Mirrors against real git: what a job left may be anything at all, and only a sound bundle gets in.

use std::path::{Path, PathBuf};
use std::process::Command;

use devfleet_host::mirror::{MirrorError, Mirrors};
use tempfile::TempDir;

const BRANCH: &str = "devfleet/work-1";

fn git(dir: &Path, arguments: &[&str]) -> Vec<u8> {
    let identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "init.defaultBranch=main"];
    let output = Command::new("git").current_dir(dir).args(identity).args(arguments).output().expect("git can be run");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn head(dir: &Path) -> String {
    String::from_utf8(git(dir, &["rev-parse", "HEAD"])).expect("a hash").trim().to_owned()
}

/// A repository with one commit, its mirror, and a workspace with a commit more.
struct Grounds {
    dir: TempDir,
    mirrors: Mirrors,
    url: String,
    base: String,
}

impl Grounds {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let origin = dir.path().join("origin");
        std::fs::create_dir(&origin).expect("a directory");
        git(&origin, &["init", "--quiet"]);
        std::fs::write(origin.join("answer.txt"), "41\n").expect("written");
        git(&origin, &["add", "--all"]);
        git(&origin, &["commit", "--quiet", "--message=Begin"]);
        let (url, base) = (origin.display().to_string(), head(&origin));
        let mirrors = Mirrors::new(dir.path().join("mirrors"));
        mirrors.fetch(&url, None, &base).await.expect("a mirror");
        git(dir.path(), &["clone", "--quiet", &url, "work"]);
        let work = dir.path().join("work");
        git(&work, &["checkout", "--quiet", "-B", "devfleet"]);
        std::fs::write(work.join("answer.txt"), "42\n").expect("written");
        git(&work, &["commit", "--quiet", "--all", "--message=Fix"]);
        Self { dir, mirrors, url, base }
    }

    fn bundle(&self, range: &str) -> Vec<u8> {
        git(&self.dir.path().join("work"), &["bundle", "create", "--quiet", "-", range])
    }

    fn good(&self) -> Vec<u8> {
        self.bundle(&format!("{}..refs/heads/devfleet", self.base))
    }

    async fn import(&self, bundle: &[u8]) -> Result<String, MirrorError> {
        let path: PathBuf = self.dir.path().join("bundle");
        std::fs::write(&path, bundle).expect("written");
        self.mirrors.import(&self.url, &self.base, &path, BRANCH).await.map(|imported| imported.diff)
    }

    async fn check_refused(&self, bundle: &[u8], words: &str) {
        let error = self.import(bundle).await.expect_err(words);
        assert!(matches!(error, MirrorError::BundleRejected { .. }), "{error:?}");
        assert!(error.to_string().contains(words) && !error.is_retryable(), "{error} does not say {words:?}");
    }
}

#[tokio::test]
async fn a_bundle_that_is_no_bundle_is_refused_and_a_sound_one_still_gets_in() {
    let grounds = Grounds::new().await;
    let good = grounds.good();
    grounds.check_refused(b"", "not a git bundle").await;
    grounds.check_refused(b"total 8\ndrwxr-xr-x 2 root root\n", "not a git bundle").await;
    grounds.check_refused(&[0; 4096], "not a git bundle").await;
    grounds.check_refused(&good[..20], "header does not end").await;
    let pack = good.windows(4).position(|window| window == b"PACK").expect("a pack");
    grounds.check_refused(&good[..pack], "not sound").await;
    grounds.check_refused(&good[..good.len() - 30], "not sound").await;
    let mut bent = good.clone();
    *bent.last_mut().expect("bytes") ^= 0xff;
    grounds.check_refused(&bent, "not sound").await;
    let diff = grounds.import(&good).await.expect("a sound bundle");
    assert!(diff.contains("-41") && diff.contains("+42"), "{diff}");
}

#[tokio::test]
async fn a_bundle_must_bring_one_work_branch_that_grew_from_the_base() {
    let grounds = Grounds::new().await;
    let work = grounds.dir.path().join("work");
    git(&work, &["branch", "other"]);
    grounds.check_refused(&grounds.bundle(&format!("{}..refs/heads/other", grounds.base)), "refs/heads/other").await;
    git(&work, &["checkout", "--quiet", "--orphan", "fresh"]);
    git(&work, &["commit", "--quiet", "--message=Another history"]);
    git(&work, &["branch", "--force", "devfleet", "fresh"]);
    grounds.check_refused(&grounds.bundle("refs/heads/devfleet"), "descend from the base").await;
    let whole = Mirrors::new(grounds.dir.path().join("mirrors")).with_bundle_limit(100);
    let path = grounds.dir.path().join("bundle");
    let error = whole.import(&grounds.url, &grounds.base, &path, BRANCH).await.expect_err("too long");
    assert!(error.to_string().contains("the limit is 100"), "{error}");
}
