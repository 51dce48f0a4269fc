//! Plain git: includes, the cache, refused logins, and where the login must not show.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use devfleet_controller::forge::git::{PlainGit, PlainGitSettings, merge_request_key};
use devfleet_controller::forge::{CiConfig, Forge as _, ForgeError, MergeRequest};
use devfleet_shared::secret::Secret;
use futures_util::future::join_all;

use super::draft;
use super::grounds::{Ground as _, PlainGround, plain_git};
use crate::support::gitlab::{Fault, Route, Scope, Standing};

#[tokio::test]
async fn every_local_include_is_read_and_every_other_is_named() {
    let ground = PlainGround::on_disk().await;
    let main = "include:\n  - /ci/a.yml\n  - {local: 'ci/more/*.yml'}\n  - {remote: 'https://x.example/r.yml'}\n  - gone.yml\n";
    let commit = ground.commit(
        "main",
        &[
            (".gitlab-ci.yml", main),
            ("ci/a.yml", "include: {local: ci/b.yml}\na: 1\n"),
            ("ci/b.yml", "include: ci/a.yml\nb: !reference [a]\n"),
            ("ci/more/c.yml", "c: 1\n"),
            ("ci/more/deep/d.yml", "d: 1\n"),
        ],
    );
    let CiConfig::Raw { path, files, notes } = ground.forge.ci_config(&commit).await.expect("it is read") else {
        panic!("plain git merges nothing");
    };
    let paths: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(path, ".gitlab-ci.yml");
    assert_eq!(paths, [".gitlab-ci.yml", "ci/a.yml", "ci/b.yml", "ci/more/c.yml"]);
    assert_eq!(files[2].1, "include: ci/a.yml\nb: !reference [a]\n");
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].contains("remote https://x.example/r.yml") && notes[1].contains("gone.yml"), "{notes:?}");
}

#[tokio::test]
async fn a_commit_is_fetched_once_also_one_that_no_branch_has_any_more() {
    let ground = PlainGround::over_http().await;
    let first = ground.commit("main", &[("a", "1\n")]);
    ground.commit("main", &[("a", "2\n")]);
    assert_eq!(ground.forge.read_file(&first, "a").await.expect("it is read").as_deref(), Some(b"1\n".as_slice()));
    let calls = ground.stand_in.count(Route::GitFetch);
    assert!(calls > 0);
    ground.forge.read_file(&first, "a").await.expect("it is read again");
    assert_eq!(ground.stand_in.count(Route::GitFetch), calls);
    assert!(
        !ground
            .directory
            .path()
            .join("cache")
            .read_dir()
            .expect("there is a cache")
            .any(|entry| { entry.expect("an entry").path().join("a").exists() })
    );
}

#[tokio::test]
async fn what_was_read_of_a_commit_is_not_asked_of_git_again_and_a_branch_that_moved_is_seen() {
    let ground = PlainGround::on_disk().await;
    let files = [(".gitlab-ci.yml", "include: {local: 'ci/*.yml'}\n"), ("ci/a.yml", "a: 1\n"), ("a", "1\n")];
    let first = ground.commit("main", &files);
    let read = async || {
        let config = ground.forge.ci_config(&first).await.expect("it is read");
        let file = ground.forge.read_file(&first, "a").await.expect("it is read");
        let none = ground.forge.read_file(&first, "none").await.expect("it is looked for");
        (config, file, none)
    };
    let before = read().await;
    let cache = ground.directory.path().join("cache").read_dir().expect("a cache").next().expect("one").expect("it");
    std::fs::remove_dir_all(cache.path().join("objects")).expect("removed");
    assert_eq!(read().await, before);
    assert_eq!(ground.forge.base(None).await.expect("a base").commit, first);
    let second = ground.commit("main", &[("a", "2\n")]);
    assert_eq!(ground.forge.base(None).await.expect("a base").commit, second);
    // A cache that somebody removed is made anew.
    std::fs::remove_dir_all(cache.path()).expect("removed");
    assert_eq!(ground.forge.read_file(&second, "a").await.expect("it is read").as_deref(), Some(b"2\n".as_slice()));
}

#[tokio::test]
async fn refused_logins_are_told_apart_and_not_tried_again() {
    let ground = PlainGround::over_http().await;
    ground.commit("main", &[("a", "1\n")]);
    for (password, expected) in [
        (Some("wrong-canary".to_owned()), "Unauthorized"),
        (None, "Unauthorized"),
        (Some(ground.stand_in.token_of(Standing::Expired, Scope::Api)), "Unauthorized"),
        (Some(ground.stand_in.token_of(Standing::Guest, Scope::Api)), "Forbidden"),
        (Some(ground.stand_in.token_of(Standing::Outsider, Scope::Api)), "NotFound"),
    ] {
        let before = ground.stand_in.count(Route::GitFetch);
        let forge = plain_git(&ground.repository, password.as_deref(), &ground.directory, &ground.store);
        let error = forge.check().await.expect_err("the login is refused");
        assert!(format!("{error:?}").starts_with(expected), "{error:?}");
        assert_eq!(ground.stand_in.count(Route::GitFetch), before + 1, "{error}");
        assert!(password.is_none_or(|password| !format!("{error} {error:?}").contains(&password)), "{error:?}");
    }
    let before = ground.stand_in.ledger().len();
    ground.stand_in.fault(Fault::Status { route: Route::GitFetch, code: 302, retry_after: None, times: 1 });
    ground.forge.check().await.expect_err("a redirect is not followed, as it would take the login along");
    assert_eq!(ground.stand_in.ledger().len(), before + 1);
    let nowhere = plain_git("/nonexistent/x.git", None, &ground.directory, &ground.store);
    assert!(matches!(nowhere.base(None).await, Err(ForgeError::NotFound { .. })));
}

#[tokio::test]
async fn a_server_that_is_down_for_a_moment_is_asked_again() {
    let ground = PlainGround::over_http().await;
    let commit = ground.commit("main", &[("a", "1\n")]);
    ground.stand_in.fault(Fault::Status { route: Route::GitFetch, code: 502, retry_after: None, times: 2 });
    assert_eq!(ground.forge.base(None).await.expect("it answers in the end").commit, commit);
    ground.stand_in.fault(Fault::Status { route: Route::GitFetch, code: 503, retry_after: None, times: 9 });
    let error = ground.forge.base(None).await.expect_err("it stays down");
    assert!(error.is_retryable() && error.to_string().contains("503"), "{error}");
}

#[tokio::test]
async fn merge_requests_are_numbered_without_gap_or_double() {
    let ground = PlainGround::on_disk().await;
    let other = PlainGround::on_disk().await;
    let drafts: Vec<_> = (0..10).map(|number| draft(&format!("work/{}", number / 2), "c0ffee")).collect();
    let second = plain_git(&ground.repository, None, &ground.directory, &ground.store);
    let opened = join_all(drafts.iter().enumerate().map(|(index, draft)| {
        let forge = if index % 2 == 0 { &ground.forge } else { &second };
        forge.ensure_merge_request(draft)
    }))
    .await;
    let opened: Vec<MergeRequest> = opened.into_iter().map(|opened| opened.expect("it is recorded")).collect();
    for pair in opened.chunks(2) {
        assert_eq!(pair[0], pair[1]);
    }
    let mut numbers: Vec<u64> = opened.iter().step_by(2).map(|opened| opened.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
    let key = merge_request_key(&ground.repository, "work/0");
    let record = ground.store.get(&key).await.expect("the store answers").expect("the record is there");
    assert_eq!(serde_json::from_slice::<MergeRequest>(&record.value).expect("it is JSON"), opened[0]);
    let elsewhere = other.forge.ensure_merge_request(&draft("work/0", "c0ffee")).await.expect("it is recorded");
    assert_eq!(elsewhere.number, 1);
}

#[tokio::test]
async fn the_login_shows_neither_on_disk_nor_in_a_command_line() {
    let ground = PlainGround::over_http().await;
    let commit = ground.commit("main", &[(".gitlab-ci.yml", super::CI)]);
    let password = ground.password.clone().expect("there is a login");
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("bot:{password}"));
    let delay = Duration::from_millis(700);
    ground.stand_in.fault(Fault::Delay { route: Route::GitFetch, delay, times: 2 });
    let needles = [password.as_str(), encoded.as_str()];
    let (config, (in_arguments, in_environment)) =
        tokio::join!(ground.forge.ci_config(&commit), watch_processes(&needles));
    config.expect("the configuration is read");
    assert!(in_environment, "the scan must see the process that has the login");
    assert!(!in_arguments, "the login stands in a command line");
    for needle in [&password, &encoded] {
        assert_eq!(files_with(&ground.directory.path().join("cache"), needle.as_bytes()), Vec::<String>::new());
    }
    assert!(!files_with(&ground.directory.path().join("cache"), b"repositoryformatversion").is_empty());
    let settings = PlainGitSettings {
        repository: ground.repository.clone(),
        default_branch: None,
        login: Some(("bot".to_owned(), Secret::new(password.clone()))),
        ci_config_path: ".gitlab-ci.yml".to_owned(),
    };
    assert!(!format!("{settings:?}").contains(&password));
    let error = PlainGit::new(
        PlainGitSettings { repository: "https://bot:canary@x.example/a.git".to_owned(), ..settings },
        ground.directory.path().join("cache"),
        ground.store.clone(),
    );
    let error = error.err().expect("a credential in the address is refused");
    assert!(error.to_string().contains("forge.password") && !error.to_string().contains("canary"), "{error}");
}

/// Looks at every process for half a second: is a needle in a command line, or in an environment?
async fn watch_processes(needles: &[&str]) -> (bool, bool) {
    let holds = |path: &Path| {
        let bytes = std::fs::read(path).unwrap_or_default();
        needles.iter().any(|needle| bytes.windows(needle.len()).any(|window| window == needle.as_bytes()))
    };
    let (mut in_arguments, mut in_environment) = (false, false);
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    for _ in 0..25 {
        looks.tick().await;
        for process in std::fs::read_dir("/proc").expect("there is a /proc").flatten() {
            in_arguments |= holds(&process.path().join("cmdline"));
            in_environment |= holds(&process.path().join("environ"));
        }
    }
    (in_arguments, in_environment)
}

/// Lists the files below a directory that hold a text.
fn files_with(directory: &Path, needle: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("the directory is there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with(&path, needle));
        } else if std::fs::read(&path).expect("the file is read").windows(needle.len()).any(|window| window == needle) {
            found.push(path.display().to_string());
        }
    }
    found
}
