//! Mirrors against real git: repositories on disk, and a server that asks for a login.

mod http;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devfleet_host::mirror::{GitLogin, Imported, MirrorError, Mirrors};
use devfleet_shared::secret::Secret;
use http::GitServer;

const CANARY: &str = "canary-Passw0rd-77";
const BRANCH: &str = "devfleet/1234-fix";

/// Runs git as a person would, and returns what it printed.
fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(dir)
        .args(["-c", "protocol.file.allow=always"])
        .args(args)
        .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1")])
        .envs([
            ("GIT_AUTHOR_NAME", "a"),
            ("GIT_AUTHOR_EMAIL", "a@b"),
            ("GIT_COMMITTER_NAME", "a"),
            ("GIT_COMMITTER_EMAIL", "a@b"),
        ])
        .output()
        .expect("git");
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A forge's repository, somebody's clone of it, and this host's mirrors.
struct Bench {
    dir: tempfile::TempDir,
    origin: PathBuf,
    clone: PathBuf,
    mirrors: Mirrors,
    base: String,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().expect("folder");
        let (origin, clone) = (dir.path().join("forge/origin.git"), dir.path().join("clone"));
        std::fs::create_dir_all(&origin).expect("folder");
        git(&origin, &["init", "-q", "--bare", "-b", "main"]);
        git(&origin, &["config", "http.receivepack", "true"]);
        git(dir.path(), &["init", "-q", "-b", "main", "clone"]);
        git(&clone, &["remote", "add", "origin", origin.to_str().expect("text")]);
        let mirrors = Mirrors::new(dir.path().join("mirrors"));
        let mut bench = Bench { dir, origin, clone, mirrors, base: String::new() };
        bench.base = bench.publish("README.md", "hello\n", "main");
        bench
    }

    fn url(&self) -> String {
        self.origin.to_str().expect("text").to_owned()
    }

    fn commit(&self, file: &str, text: &str) -> String {
        std::fs::write(self.clone.join(file), text).expect("file");
        git(&self.clone, &["add", "-A"]);
        git(&self.clone, &["commit", "-q", "-m", file]);
        git(&self.clone, &["rev-parse", "HEAD"])
    }

    fn publish(&self, file: &str, text: &str, branch: &str) -> String {
        let commit = self.commit(file, text);
        git(&self.clone, &["push", "-q", "--force", "origin", &format!("HEAD:refs/heads/{branch}")]);
        commit
    }

    /// Bundles what `collect` would: everything since the base, under one name.
    fn bundle(&self, name: &str, revisions: &[&str]) -> PathBuf {
        let path = self.dir.path().join(name);
        git(&self.clone, &[&["bundle", "create", "-q", path.to_str().expect("text")], revisions].concat());
        path
    }

    fn work(&self, file: &str, text: &str) -> (String, PathBuf) {
        git(&self.clone, &["checkout", "-q", "-B", "devfleet", &self.base]);
        let commit = self.commit(file, text);
        let bundle = self.bundle("work.bundle", &["refs/heads/devfleet", &format!("^{}", self.base)]);
        (commit, bundle)
    }

    async fn import(&self, bundle: &Path) -> Result<Imported, MirrorError> {
        self.mirrors.fetch(&self.url(), None, &self.base).await.expect("mirror");
        self.mirrors.import(&self.url(), &self.base, bundle, BRANCH).await
    }

    async fn rejected(&self, bundle: &Path) -> String {
        match self.import(bundle).await {
            Err(MirrorError::BundleRejected { detail }) => detail,
            other => panic!("not rejected: {other:?}"),
        }
    }

    fn branch_at_origin(&self, branch: &str) -> Option<String> {
        let listed = git(&self.origin, &["for-each-ref", "--format=%(objectname)", &format!("refs/heads/{branch}")]);
        Some(listed).filter(|listed| !listed.is_empty())
    }
}

fn all_bytes_under(dir: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).expect("folder") {
        let path = entry.expect("entry").path();
        all.extend(path.to_string_lossy().bytes());
        match path.is_dir() {
            true => all.extend(all_bytes_under(&path)),
            false => all.extend(std::fs::read(&path).expect("file")),
        }
    }
    all
}

fn holds(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[tokio::test]
async fn a_mirror_gets_the_wanted_commit_and_then_only_what_is_new() {
    let bench = Bench::new();
    let mirror = bench.mirrors.fetch(&bench.url(), None, &bench.base).await.expect("mirror");
    assert_eq!(git(&mirror, &["show", &format!("{}:README.md", bench.base)]), "hello");
    let next = bench.publish("second", "2\n", "topic/second");
    let again = bench.mirrors.fetch(&bench.url(), None, &next).await.expect("mirror");
    assert_eq!(again, mirror);
    assert_eq!(git(&mirror, &["rev-parse", "refs/heads/topic/second"]), next);
    let hooks = std::fs::read_dir(mirror.join("hooks")).map(Iterator::count).unwrap_or(0);
    assert_eq!(hooks, 0);
}

#[tokio::test]
async fn a_commit_that_was_rewritten_away_is_fetched_by_its_name_and_stays_cloneable() {
    let bench = Bench::new();
    git(&bench.origin, &["config", "uploadpack.allowAnySHA1InWant", "true"]);
    let gone = bench.publish("gone", "1\n", "main");
    git(&bench.clone, &["reset", "-q", "--hard", &bench.base]);
    bench.publish("other", "2\n", "main");
    let mirror = bench.mirrors.fetch(&bench.url(), None, &gone).await.expect("mirror");
    let copy = bench.dir.path().join("copy");
    git(bench.dir.path(), &["clone", "-q", "--no-checkout", mirror.to_str().expect("text"), "copy"]);
    git(&copy, &["fetch", "-q", "origin", &gone]);
    git(&copy, &["checkout", "-q", &gone]);
    assert!(copy.join("gone").exists());
}

#[tokio::test]
async fn what_cannot_be_fetched_is_told_apart() {
    let bench = Bench::new();
    let absent = "0123456789012345678901234567890123456789";
    let found = bench.mirrors.fetch(&bench.url(), None, absent).await;
    assert!(matches!(found, Err(MirrorError::CommitNotFound { .. })), "{found:?}");
    let found = bench.mirrors.fetch("/nowhere/at/all.git", None, absent).await.expect_err("no repository");
    assert!(matches!(found, MirrorError::NotFound { .. }) && !found.is_retryable(), "{found}");
    let found = bench.mirrors.fetch("http://127.0.0.1:1/x.git", None, absent).await.expect_err("nobody there");
    assert!(matches!(found, MirrorError::Unreachable { .. }) && found.is_retryable(), "{found}");
    for url in ["ext::sh -c true", "ext::x", "-oops", "http://me:pass@host/x", "ftp://host/x", "relative", ""] {
        let found = bench.mirrors.fetch(url, None, absent).await.expect_err("no URL of ours");
        assert!(matches!(found, MirrorError::Url { .. }) && !found.to_string().contains("pass@"), "{found}");
    }
    for commit in ["main", "--upload-pack=x", "0123"] {
        let found = bench.mirrors.fetch(&bench.url(), None, commit).await;
        assert!(matches!(found, Err(MirrorError::Name { .. })), "{found:?}");
    }
}

#[tokio::test]
async fn a_damaged_mirror_is_set_aside_and_made_anew() {
    let bench = Bench::new();
    let mirror = bench.mirrors.fetch(&bench.url(), None, &bench.base).await.expect("mirror");
    for damage in 0..3 {
        let objects = mirror.join("objects");
        let next = bench.publish(&format!("file{damage}"), "x\n", "main");
        match damage {
            0 => std::fs::remove_file(mirror.join("HEAD")).expect("remove"),
            1 => std::fs::write(mirror.join("config"), "[broken").expect("write"),
            _ => {
                std::fs::remove_dir_all(&objects).expect("remove");
                std::fs::create_dir(&objects).expect("folder");
            }
        }
        let again = bench.mirrors.fetch(&bench.url(), None, &next).await.expect("made anew");
        assert_eq!(git(&again, &["cat-file", "-t", &next]), "commit", "damage {damage}");
        assert_eq!(git(&again, &["cat-file", "-t", &bench.base]), "commit", "damage {damage}");
    }
}

#[tokio::test]
async fn fetches_and_imports_at_the_same_time_do_not_disturb_each_other() {
    let bench = Arc::new(Bench::new());
    let (commit, bundle) = bench.work("fix", "fixed\n");
    bench.mirrors.fetch(&bench.url(), None, &bench.base).await.expect("mirror");
    git(&bench.clone, &["checkout", "-q", "main"]);
    let commits: Vec<String> = (0..4).map(|n| bench.publish(&format!("p{n}"), "x\n", &format!("b{n}"))).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for (n, wanted) in commits.into_iter().enumerate() {
        let (bench, bundle, commit) = (bench.clone(), bundle.clone(), commit.clone());
        // Each task has mirrors of its own, as a second process would.
        let mirrors = Mirrors::new(bench.dir.path().join("mirrors"));
        tasks.spawn(async move {
            mirrors.fetch(&bench.url(), None, &wanted).await.expect("fetch");
            let branch = format!("devfleet/{n}");
            let imported = mirrors.import(&bench.url(), &bench.base, &bundle, &branch).await.expect("import");
            assert_eq!(imported.commit, commit);
            mirrors.push(&bench.url(), None, &commit, &branch).await.expect("push");
        });
    }
    tasks.join_all().await;
    assert_eq!(bench.branch_at_origin("devfleet/3"), Some(commit));
}

#[tokio::test]
async fn a_bundle_is_taken_in_compared_and_pushed_once() {
    let bench = Bench::new();
    let (commit, bundle) = bench.work("README.md", "hello\nworld\n");
    let imported = bench.import(&bundle).await.expect("import");
    assert_eq!(imported.commit, commit);
    assert!(imported.diff.contains("+world") && !imported.diff_truncated, "{}", imported.diff);
    let mirror = bench.mirrors.fetch(&bench.url(), None, &bench.base).await.expect("mirror");
    let seen =
        Command::new("git").arg("--git-dir").arg(&mirror).args(["cat-file", "-e", &commit]).status().expect("git");
    assert!(!seen.success(), "other jobs do not see it");
    bench.mirrors.push(&bench.url(), None, &commit, BRANCH).await.expect("push");
    assert_eq!(bench.branch_at_origin(BRANCH), Some(commit.clone()));
    bench.mirrors.push(&bench.url(), None, &commit, BRANCH).await.expect("already there");
    assert_eq!(std::fs::read_dir(mirror.with_file_name("work")).expect("folder").count(), 0, "nothing is left");
}

#[tokio::test]
async fn a_branch_with_other_work_is_never_overwritten() {
    let bench = Bench::new();
    let (commit, bundle) = bench.work("fix", "fixed\n");
    bench.import(&bundle).await.expect("import");
    git(&bench.clone, &["checkout", "-q", "main"]);
    let theirs = bench.publish("theirs", "x\n", BRANCH);
    let refused = bench.mirrors.push(&bench.url(), None, &commit, BRANCH).await.expect_err("taken");
    assert!(matches!(&refused, MirrorError::PushRejected { detail, .. } if detail.contains(&theirs)), "{refused}");
    assert!(!refused.is_retryable());
    assert_eq!(bench.branch_at_origin(BRANCH), Some(theirs));
}

#[tokio::test]
async fn a_branch_that_appears_while_a_push_is_under_way_is_not_overwritten() {
    let bench = Bench::new();
    let server = GitServer::start(bench.dir.path().join("forge"), "oauth2", CANARY).await;
    let url = server.url("origin.git");
    let login = GitLogin { username: "oauth2".to_owned(), password: Secret::new(CANARY) };
    bench.mirrors.fetch(&url, Some(&login), &bench.base).await.expect("fetch");
    let (commit, bundle) = bench.work("fix", "fixed\n");
    bench.mirrors.import(&url, &bench.base, &bundle, BRANCH).await.expect("import");
    let (origin, base) = (bench.origin.clone(), bench.base.clone());
    let appear = move || _ = git(&origin, &["update-ref", &format!("refs/heads/{BRANCH}"), &base]);
    *server.before_push.lock().expect("lock") = Some(Box::new(appear));
    let refused = bench.mirrors.push(&url, Some(&login), &commit, BRANCH).await.expect_err("taken meanwhile");
    assert!(matches!(refused, MirrorError::PushRejected { .. }), "{refused}");
    assert_eq!(bench.branch_at_origin(BRANCH), Some(bench.base.clone()));
}

#[tokio::test]
async fn the_remotes_own_words_tell_why_it_refused() {
    let bench = Bench::new();
    let (commit, bundle) = bench.work("fix", "fixed\n");
    bench.import(&bundle).await.expect("import");
    let hook = bench.origin.join("hooks/pre-receive");
    std::fs::create_dir_all(hook.with_file_name("")).expect("folder");
    std::fs::write(&hook, "#!/bin/sh\necho 'GitLab: branch name not allowed' >&2\nexit 1\n").expect("hook");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&hook, mode).expect("mode");
    let refused = bench.mirrors.push(&bench.url(), None, &commit, BRANCH).await.expect_err("refused");
    assert!(
        matches!(&refused, MirrorError::PushRejected { detail, .. } if detail.contains("not allowed")),
        "{refused}"
    );
}

#[tokio::test]
async fn bundles_that_are_not_what_they_should_be_are_rejected_with_the_reason() {
    let bench = Bench::new();
    let (_, good) = bench.work("fix", "fixed\n");
    let bytes = std::fs::read(&good).expect("bundle");
    let path = bench.dir.path().join("bad.bundle");
    let mut check = Vec::new();
    for (bad, why) in [
        (b"#!/bin/sh\n".to_vec(), "not a git bundle"),
        (Vec::new(), "not a git bundle"),
        (b"# v2 git bundle\n".to_vec(), "does not end"),
        (b"# v2 git bundle\n\n".to_vec(), "0 refs"),
        (b"# v3 git bundle\n@filter=blob:none\n\n".to_vec(), "filter"),
        (bytes[..bytes.len() - 30].to_vec(), "not sound"),
    ] {
        std::fs::write(&path, bad).expect("file");
        check.push((bench.rejected(&path).await, why));
    }
    let since = format!("^{}", bench.base);
    git(&bench.clone, &["branch", "-f", "other"]);
    let two = bench.bundle("two.bundle", &["refs/heads/devfleet", "refs/heads/other", &since]);
    check.push((bench.rejected(&two).await, "2 refs"));
    check.push((bench.rejected(&bench.bundle("name.bundle", &["refs/heads/other", &since])).await, "refs/heads/other"));
    git(&bench.clone, &["checkout", "-q", "--orphan", "fresh"]);
    bench.commit("unrelated", "x\n");
    git(&bench.clone, &["branch", "-f", "devfleet"]);
    check.push((bench.rejected(&bench.bundle("orphan.bundle", &["refs/heads/devfleet"])).await, "does not descend"));
    let link = bench.dir.path().join("link.bundle");
    std::os::unix::fs::symlink(&good, &link).expect("link");
    check.push((bench.rejected(&link).await, "plain file"));
    for (detail, why) in check {
        assert!(detail.contains(why), "{why}: {detail}");
    }
    let small = Mirrors::new(bench.dir.path().join("mirrors")).with_bundle_limit(10);
    let refused = small.import(&bench.url(), &bench.base, &good, BRANCH).await.expect_err("too long");
    assert!(refused.to_string().contains("the limit is 10"), "{refused}");
}

#[tokio::test]
async fn hostile_trees_are_rejected() {
    let bench = Bench::new();
    git(&bench.clone, &["checkout", "-q", "-B", "devfleet", &bench.base]);
    let blob = git(&bench.clone, &["hash-object", "-w", "README.md"]);
    let tree = bench.dir.path().join("tree");
    let raw = |name: &str| {
        let id: Vec<u8> = (0..20).map(|n| u8::from_str_radix(&blob[2 * n..2 * n + 2], 16).expect("hex")).collect();
        [format!("100644 {name}\0").into_bytes(), id].concat()
    };
    for name in [".git", "..", "a/b"] {
        std::fs::write(&tree, raw(name)).expect("tree");
        let text = tree.to_str().expect("text");
        let id = git(&bench.clone, &["hash-object", "-w", "-t", "tree", "--literally", text]);
        let commit = git(&bench.clone, &["commit-tree", "-p", &bench.base, "-m", "bad", &id]);
        git(&bench.clone, &["update-ref", "refs/heads/devfleet", &commit]);
        let bundle = bench.bundle("hostile.bundle", &["refs/heads/devfleet", &format!("^{}", bench.base)]);
        assert!(bench.rejected(&bundle).await.contains("not sound"), "{name}");
    }
}

#[tokio::test]
async fn nothing_changed_is_said_and_a_long_diff_is_cut() {
    let bench = Bench::new();
    git(&bench.clone, &["checkout", "-q", "-B", "devfleet", &bench.base]);
    let same = bench.bundle("same.bundle", &["refs/heads/devfleet"]);
    assert!(matches!(bench.import(&same).await, Err(MirrorError::NoChange)));
    let (_, long) = bench.work("long", &"é ".repeat(100).replace(' ', "\n").repeat(10_000));
    let imported = bench.import(&long).await.expect("import");
    assert!(imported.diff_truncated && imported.diff.len() <= 1024 * 1024 && imported.diff.len() > 1_000_000);
}

#[tokio::test]
async fn a_login_reaches_the_server_and_nothing_else() {
    let bench = Bench::new();
    let server = GitServer::start(bench.dir.path().join("forge"), "oauth2", CANARY).await;
    let url = server.url("origin.git");
    let login = GitLogin { username: "oauth2".to_owned(), password: Secret::new(CANARY) };
    let done = Arc::new(AtomicBool::new(false));
    let watched = std::thread::spawn({
        let done = done.clone();
        move || {
            let mut seen = Vec::new();
            while !done.load(Ordering::SeqCst) {
                for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
                    let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    seen.extend(Some(line).filter(|line| line.starts_with(b"git")));
                }
            }
            seen
        }
    });
    bench.mirrors.fetch(&url, Some(&login), &bench.base).await.expect("fetch");
    let (commit, bundle) = bench.work("fix", "fixed\n");
    bench.mirrors.import(&url, &bench.base, &bundle, BRANCH).await.expect("import");
    bench.mirrors.push(&url, Some(&login), &commit, BRANCH).await.expect("push");
    done.store(true, Ordering::SeqCst);
    let lines = watched.join().expect("watcher");
    assert!(lines.iter().any(|line| holds(line, "fetch")), "the watcher saw git at work");
    let basic = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("oauth2:{CANARY}"));
    let on_disk = all_bytes_under(&bench.dir.path().join("mirrors"));
    for secret in [CANARY, &basic] {
        assert!(!holds(&lines.concat(), secret) && !holds(&on_disk, secret));
    }
    assert_eq!(bench.branch_at_origin(BRANCH), Some(commit));
    let wrong = GitLogin { username: "oauth2".to_owned(), password: Secret::new("another-Passw0rd") };
    let other = server.url("./origin.git");
    let refused = bench.mirrors.fetch(&other, Some(&wrong), &bench.base).await.expect_err("wrong");
    assert!(matches!(refused, MirrorError::Auth { .. }) && !refused.to_string().contains("another"), "{refused}");
    let refused = bench.mirrors.fetch(&other, None, &bench.base).await.expect_err("none");
    assert!(matches!(refused, MirrorError::Auth { .. }), "{refused}");
    let missing = bench.mirrors.fetch(&server.url("none.git"), Some(&login), &bench.base).await.expect_err("missing");
    assert!(matches!(missing, MirrorError::NotFound { .. }), "{missing}");
}

#[tokio::test]
async fn a_push_whose_answer_was_lost_is_made_again_and_a_server_that_is_down_is_worth_another_try() {
    let bench = Bench::new();
    let server = GitServer::start(bench.dir.path().join("forge"), "oauth2", CANARY).await;
    let url = server.url("origin.git");
    let login = GitLogin { username: "oauth2".to_owned(), password: Secret::new(CANARY) };
    bench.mirrors.fetch(&url, Some(&login), &bench.base).await.expect("fetch");
    let (commit, bundle) = bench.work("fix", "fixed\n");
    bench.mirrors.import(&url, &bench.base, &bundle, BRANCH).await.expect("import");
    server.is_down.store(true, Ordering::SeqCst);
    let down = bench.mirrors.push(&url, Some(&login), &commit, BRANCH).await.expect_err("down");
    assert!(down.is_retryable(), "{down}");
    server.is_down.store(false, Ordering::SeqCst);
    server.loses_answers.store(true, Ordering::SeqCst);
    let lost = bench.mirrors.push(&url, Some(&login), &commit, BRANCH).await.expect_err("lost");
    assert!(lost.is_retryable(), "{lost}");
    assert_eq!(bench.branch_at_origin(BRANCH), Some(commit.clone()), "it had taken effect");
    bench.mirrors.push(&url, Some(&login), &commit, BRANCH).await.expect("again");
}

#[tokio::test]
async fn work_that_will_not_be_pushed_is_forgotten() {
    let bench = Bench::new();
    let (commit, bundle) = bench.work("fix", "fixed\n");
    bench.import(&bundle).await.expect("import");
    bench.mirrors.forget(&bench.url(), BRANCH).await.expect("forget");
    bench.mirrors.forget(&bench.url(), BRANCH).await.expect("forget, twice");
    let gone = bench.mirrors.push(&bench.url(), None, &commit, BRANCH).await.expect_err("gone");
    assert!(matches!(gone, MirrorError::CommitNotFound { .. }), "{gone}");
    for branch in ["", "../x", "-x", "a..b", "a b", "x.lock", "a/.b", "/a", "a/"] {
        let refused = bench.mirrors.push(&bench.url(), None, &commit, branch).await;
        assert!(matches!(refused, Err(MirrorError::Name { .. })), "{branch:?}: {refused:?}");
    }
}
