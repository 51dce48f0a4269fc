//! One contract for every forge, and what each of them does when it is refused, delayed or cut off.
//!
//! A [`Ground`] is a repository to stand on: each case works on branches and markers of its own.

mod gitlab;
mod grounds;
mod plain_git;
mod stand_in;
mod variables;

use devfleet_controller::forge::{CiConfig, Forge, ForgeError, MergeRequest, MergeRequestDraft};
use futures_util::future::join_all;

use grounds::{GitLabGround, Ground, MemoryGround, PlainGround};

/// What the CI configuration of every case holds.
const CI: &str = "test:\n  script: [make test]\n";

#[tokio::test]
async fn the_memory_forge_keeps_the_contract() {
    contract(&MemoryGround::start()).await;
}

#[tokio::test]
async fn gitlab_keeps_the_contract() {
    contract(&GitLabGround::start().await).await;
}

#[tokio::test]
async fn a_repository_on_disk_keeps_the_contract() {
    contract(&PlainGround::on_disk().await).await;
}

#[tokio::test]
async fn a_repository_behind_a_login_keeps_the_contract() {
    contract(&PlainGround::over_http().await).await;
}

async fn contract(ground: &dyn Ground) {
    an_empty_repository_is_said_to_be_empty(ground).await;
    branches_are_found_and_missing_ones_named(ground).await;
    files_are_read_as_they_were_at_a_commit(ground).await;
    the_ci_configuration_of_a_commit_is_read(ground).await;
    git_reaches_the_repository(ground).await;
    a_merge_request_is_opened_once(ground).await;
    a_merge_request_is_opened_once_by_many_at_once(ground).await;
    a_note_is_put_once_per_marker(ground).await;
    the_check_says_what_it_found(ground).await;
}

async fn an_empty_repository_is_said_to_be_empty(ground: &dyn Ground) {
    let error = ground.forge().base(None).await.expect_err("there is no branch");
    assert!(error.to_string().contains("empty") && !error.is_retryable(), "{error}");
}

async fn branches_are_found_and_missing_ones_named(ground: &dyn Ground) {
    let main = ground.commit("main", &[("README.md", "hello\n")]);
    let other = ground.commit("feature/é-1", &[("a.txt", "a\n")]);
    let forge = ground.forge();
    let base = forge.base(None).await.expect("the default branch is found");
    assert_eq!((base.branch.as_str(), &base.commit), ("main", &main));
    let base = forge.base(Some("feature/é-1")).await.expect("a named branch is found");
    assert_eq!((base.branch.as_str(), &base.commit), ("feature/é-1", &other));
    for missing in ["none", "feature", "--upload-pack=/bin/true", "a b", "main/../main"] {
        let error = forge.base(Some(missing)).await.expect_err("it does not exist");
        assert!(matches!(&error, ForgeError::NoSuchBranch { branch } if branch == missing), "{missing}: {error:?}");
    }
}

async fn files_are_read_as_they_were_at_a_commit(ground: &dyn Ground) {
    let old = ground.commit("main", &[("dir/with space/f#1?.txt", "old\n")]);
    let new = ground.commit("main", &[("dir/with space/f#1?.txt", "new\n")]);
    let forge = ground.forge();
    for (commit, expected) in [(&old, "old\n"), (&new, "new\n")] {
        for path in ["dir/with space/f#1?.txt", "/dir/with space/f#1?.txt"] {
            let found = forge.read_file(commit, path).await.expect("the file is read");
            assert_eq!(found.as_deref(), Some(expected.as_bytes()), "{path}");
        }
    }
    for missing in ["none.txt", "dir", "../etc/passwd", "dir/../README.md", "-x"] {
        let found = forge.read_file(&new, missing).await.expect("a missing file is no error");
        assert_eq!(found, None, "{missing}");
    }
    let error = forge.read_file(&"d".repeat(40), "README.md").await.expect_err("there is no such commit");
    assert!(matches!(error, ForgeError::NotFound { .. }), "{error:?}");
}

async fn the_ci_configuration_of_a_commit_is_read(ground: &dyn Ground) {
    let without = ground.commit("no-ci", &[("README.md", "nothing\n")]);
    let with = ground.commit("ci", &[(".gitlab-ci.yml", CI)]);
    let forge = ground.forge();
    match forge.ci_config(&without).await {
        Err(ForgeError::NoCiConfig { path, commit }) => {
            assert_eq!((path.as_str(), commit), (".gitlab-ci.yml", without))
        }
        other => panic!("expected no configuration: {other:?}"),
    }
    match forge.ci_config(&with).await.expect("the configuration is read") {
        CiConfig::Merged { yaml, errors, files, .. } => {
            assert!(yaml.ends_with(CI) && errors.is_empty(), "{yaml} {errors:?}");
            assert_eq!(files, [".gitlab-ci.yml"]);
        }
        CiConfig::Raw { path, files, notes } => {
            assert_eq!(files, [(path, CI.to_owned())]);
            assert!(notes.is_empty(), "{notes:?}");
        }
    }
}

async fn git_reaches_the_repository(ground: &dyn Ground) {
    let access = ground.forge().git_access().await.expect("there is a way in");
    assert!(!access.url.is_empty() && !access.url.contains('@'), "{access:?}");
    if let Some((_, secret)) = &access.login {
        assert!(!format!("{access:?}").contains(secret.expose()), "{access:?}");
    }
}

fn draft(branch: &str, commit: &str) -> MergeRequestDraft {
    MergeRequestDraft {
        source_branch: branch.to_owned(),
        target_branch: "main".to_owned(),
        commit: commit.to_owned(),
        title: format!("Work of {branch}"),
        description: "### Task\n\n> do it".to_owned(),
    }
}

async fn a_merge_request_is_opened_once(ground: &dyn Ground) {
    let (one, two) = (ground.commit("work/1", &[("1", "1\n")]), ground.commit("work/2", &[("2", "2\n")]));
    let before = ground.merge_requests().await.len();
    let forge = ground.forge();
    let first = forge.ensure_merge_request(&draft("work/1", &one)).await.expect("it is opened");
    let again = forge.ensure_merge_request(&draft("work/1", &one)).await.expect("it is there");
    let second = forge.ensure_merge_request(&draft("work/2", &two)).await.expect("another is opened");
    let expected = MergeRequest {
        number: first.number,
        url: first.url.clone(),
        title: "Work of work/1".to_owned(),
        description: "### Task\n\n> do it".to_owned(),
        source_branch: "work/1".to_owned(),
        target_branch: "main".to_owned(),
        commit: one,
    };
    assert_eq!(first, expected);
    assert_eq!(again, first);
    assert_eq!(second.number, first.number + 1);
    assert_eq!(ground.merge_requests().await.len(), before + 2);
}

async fn a_merge_request_is_opened_once_by_many_at_once(ground: &dyn Ground) {
    let commit = ground.commit("work/3", &[("3", "3\n")]);
    let before = ground.merge_requests().await.len();
    let draft = draft("work/3", &commit);
    let forge = ground.forge();
    let opened = join_all((0..8).map(|_| forge.ensure_merge_request(&draft))).await;
    let numbers: Vec<u64> = opened.into_iter().map(|opened| opened.expect("it is opened or there").number).collect();
    assert!(numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");
    assert_eq!(ground.merge_requests().await.len(), before + 1);
}

async fn a_note_is_put_once_per_marker(ground: &dyn Ground) {
    let issue = ground.issue();
    let forge: &dyn Forge = ground.forge();
    let together = join_all((0..4).map(|_| forge.ensure_note(issue, "job:1", "needs a human"))).await;
    assert!(together.into_iter().all(|put| put.is_ok()));
    forge.ensure_note(issue, "job:2", "another").await.expect("another note is put");
    if let Some(notes) = ground.notes(issue).await {
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].contains("needs a human") && notes[1].contains("another"), "{notes:?}");
    }
}

async fn the_check_says_what_it_found(ground: &dyn Ground) {
    let found = ground.forge().check().await.expect("the forge is in order");
    assert!(found.contains("main") || found.contains("branches"), "{found}");
}
