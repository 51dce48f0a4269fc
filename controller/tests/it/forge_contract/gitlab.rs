//! GitLab that refuses, hesitates, loses answers and talks nonsense.

use std::time::Duration;

use devfleet_controller::forge::gitlab::{GitLab, GitLabSettings};
use devfleet_controller::forge::{CiConfig, Forge as _, ForgeError};
use devfleet_shared::secret::Secret;
use futures_util::future::join_all;

use super::draft;
use super::grounds::{GitLabGround, Ground as _, gitlab};
use crate::support::gitlab::{Fault, LintAnswer, Route, Scope, Standing};
use crate::support::looking;

const PATIENT: Duration = Duration::from_secs(20);

fn kind(error: &ForgeError) -> &'static str {
    match error {
        ForgeError::Unauthorized { .. } => "unauthorized",
        ForgeError::Forbidden { .. } => "forbidden",
        ForgeError::NotFound { .. } => "not found",
        ForgeError::Refused { .. } => "refused",
        ForgeError::Unavailable { .. } => "unavailable",
        ForgeError::NoSuchBranch { .. } => "no such branch",
        ForgeError::NoCiConfig { .. } => "no ci config",
        ForgeError::InvalidCiConfig { .. } => "invalid ci config",
    }
}

#[tokio::test]
async fn every_status_has_its_meaning_and_its_number_of_tries() {
    for (code, expected, calls, says) in [
        (401, "unauthorized", 1, "forge.token"),
        (403, "forbidden", 1, "read_api"),
        (404, "not found", 1, "check the project's path"),
        (409, "refused", 1, "409"),
        (422, "refused", 1, "422"),
        (301, "refused", 1, "has moved"),
        (429, "unavailable", 4, "429"),
        (500, "unavailable", 4, "500"),
        (502, "unavailable", 4, "502"),
        (503, "unavailable", 4, "tried again"),
    ] {
        let ground = GitLabGround::with_main().await;
        ground.stand_in.fault(Fault::Status { route: Route::Project, code, retry_after: None, times: 9 });
        let error = ground.forge.git_access().await.expect_err("the forge refuses");
        assert_eq!(kind(&error), expected, "{code}: {error}");
        assert_eq!(ground.stand_in.count(Route::Project), calls, "{code}: {error}");
        assert!(error.to_string().contains(says), "{code}: {error}");
        assert!(!error.to_string().contains("<html>"), "{error}");
        assert_eq!(
            ground.stand_in.ledger().len(),
            calls,
            "a redirect is not followed, as it would take the token along"
        );
    }
}

#[tokio::test]
async fn what_passes_is_waited_for_as_long_as_gitlab_asks() {
    let ground = GitLabGround::with_main().await;
    ground.stand_in.fault(Fault::Status { route: Route::Branch, code: 502, retry_after: None, times: 2 });
    ground.stand_in.fault(Fault::AnswerLost { route: Route::Branch, times: 1 });
    ground.forge.base(Some("main")).await.expect("the fourth try goes well");
    assert_eq!(ground.stand_in.count(Route::Branch), 4);

    ground.stand_in.fault(Fault::Status { route: Route::Project, code: 429, retry_after: Some(1), times: 1 });
    let begun = tokio::time::Instant::now();
    ground.forge.git_access().await.expect("it goes well after the pause");
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());

    let calls = ground.stand_in.count(Route::Project);
    ground.stand_in.fault(Fault::Status { route: Route::Project, code: 429, retry_after: Some(6), times: 1 });
    let error = ground.forge.git_access().await.expect_err("a long pause is left to the caller");
    let asked = matches!(&error, ForgeError::Unavailable { retry_after: Some(asked), .. } if asked.as_secs() == 6);
    assert!(asked && error.is_retryable(), "{error:?}");
    assert_eq!(ground.stand_in.count(Route::Project), calls + 1);
}

#[tokio::test]
async fn a_slow_answer_and_one_that_is_no_answer_are_unavailable() {
    let ground = GitLabGround::with_main().await;
    let hasty = gitlab(&ground.stand_in, Some(ground.stand_in.token(Scope::Api)), Duration::from_millis(200));
    ground.stand_in.fault(Fault::Delay { route: Route::Project, delay: Duration::from_secs(2), times: 4 });
    let error = hasty.git_access().await.expect_err("no answer comes in time");
    assert_eq!(kind(&error), "unavailable", "{error}");
    let body = "<html>please log in to the portal</html>".to_owned();
    ground.stand_in.fault(Fault::Nonsense { route: Route::Branch, body, times: 1 });
    let error = ground.forge.base(Some("main")).await.expect_err("that was no GitLab");
    assert!(kind(&error) == "unavailable" && error.to_string().contains("forge.url"), "{error}");

    let nobody = GitLabSettings {
        url: "http://127.0.0.1:9".to_owned(),
        project: "a/b".to_owned(),
        token: None,
        ci_config_path: ".gitlab-ci.yml".to_owned(),
    };
    let nobody = GitLab::with_pace(nobody, super::grounds::quick(PATIENT)).expect("the address is one");
    let error = nobody.check().await.expect_err("nobody listens there");
    assert_eq!(kind(&error), "unavailable", "{error}");
}

#[tokio::test]
async fn a_lost_answer_never_makes_a_second_merge_request() {
    let delay = Duration::from_millis(1_500);
    let route = Route::CreateMergeRequest;
    for (fault, expected_calls) in [
        (Fault::AnswerLost { route, times: 1 }, 1),
        (Fault::ActedThenStatus { route, code: 502, times: 1 }, 1),
        (Fault::ActedThenStatus { route, code: 500, times: 9 }, 1),
        (Fault::Status { route, code: 503, retry_after: None, times: 2 }, 3),
        (Fault::Status { route, code: 429, retry_after: Some(0), times: 1 }, 2),
        (Fault::Nonsense { route, body: "nonsense".to_owned(), times: 1 }, 2),
        (Fault::Delay { route, delay, times: 1 }, 2),
    ] {
        let ground = GitLabGround::with_main().await;
        let commit = ground.commit("work", &[("a", "a\n")]);
        let hasty = gitlab(&ground.stand_in, Some(ground.stand_in.token(Scope::Api)), Duration::from_millis(700));
        ground.stand_in.fault(fault.clone());
        let opened = hasty.ensure_merge_request(&draft("work", &commit)).await.expect("it is opened in the end");
        let again = hasty.ensure_merge_request(&draft("work", &commit)).await.expect("it is there");
        assert_eq!(opened.number, again.number, "{fault:?}");
        all_settled(&ground, route, expected_calls).await;
        let made = ground.stand_in.merge_requests(&ground.project);
        assert_eq!((made.len(), made[0].iid), (1, opened.number), "{fault:?}");
    }
}

/// Waits until the stand-in has written this many calls of a route into its ledger.
async fn all_settled(ground: &GitLabGround, route: Route, calls: usize) {
    let settled = async || (ground.stand_in.count(route) >= calls).then_some(());
    looking::until(Duration::from_secs(20), "the calls", settled).await;
    assert_eq!(ground.stand_in.count(route), calls);
}

#[tokio::test]
async fn refusals_of_a_merge_request_are_final_and_say_why() {
    for (code, expected, says) in [
        (400, "refused", "400"),
        (401, "unauthorized", "forge.token"),
        (403, "forbidden", "Developer"),
        (404, "not found", "project's path"),
        (409, "refused", "409"),
        (422, "refused", "422"),
    ] {
        let ground = GitLabGround::with_main().await;
        let commit = ground.commit("work", &[("a", "a\n")]);
        ground.stand_in.fault(Fault::Status { route: Route::CreateMergeRequest, code, retry_after: None, times: 9 });
        let error = ground.forge.ensure_merge_request(&draft("work", &commit)).await.expect_err("it is refused");
        assert!(kind(&error) == expected && error.to_string().contains(says), "{code}: {error}");
        assert_eq!(ground.stand_in.count(Route::CreateMergeRequest), 1, "{code}");
    }
    let ground = GitLabGround::with_main().await;
    let error = ground.forge.ensure_merge_request(&draft("never-pushed", "c0ffee")).await.expect_err("no such branch");
    assert!(error.to_string().contains("Source branch \"never-pushed\" does not exist"), "{error}");
}

#[tokio::test]
async fn controllers_that_know_nothing_of_each_other_open_one_merge_request() {
    let ground = GitLabGround::with_main().await;
    let commit = ground.commit("work", &[("a", "a\n")]);
    // All of them look before any of them makes one.
    let delay = Duration::from_millis(200);
    ground.stand_in.fault(Fault::Delay { route: Route::CreateMergeRequest, delay, times: 6 });
    let token = ground.stand_in.token(Scope::Api);
    let forges: Vec<GitLab> = (0..6).map(|_| gitlab(&ground.stand_in, Some(token.clone()), PATIENT)).collect();
    let draft = draft("work", &commit);
    let opened = join_all(forges.iter().map(|forge| forge.ensure_merge_request(&draft))).await;
    assert!(opened.into_iter().all(|opened| opened.expect("it is opened or there").number == 1));
    assert_eq!(ground.stand_in.merge_requests(&ground.project).len(), 1);
    let conflicts = ground.stand_in.ledger().iter().filter(|call| call.status == 409).count();
    assert!(conflicts >= 1, "{:#?}", ground.stand_in.ledger());
}

#[tokio::test]
async fn one_that_was_merged_or_closed_meanwhile_is_not_opened_again_and_a_forks_is_not_ours() {
    for state in ["merged", "closed"] {
        let ground = GitLabGround::with_main().await;
        let commit = ground.commit("work", &[("a", "a\n")]);
        ground.stand_in.add_fork_merge_request(&ground.project, "work");
        let opened = ground.forge.ensure_merge_request(&draft("work", &commit)).await.expect("it is opened");
        assert_eq!(opened.number, 2);
        ground.stand_in.set_merge_request_state(&ground.project, opened.number, state);
        let again = ground.forge.ensure_merge_request(&draft("work", &commit)).await.expect("it is found");
        assert_eq!(again.number, opened.number);
        assert_eq!(ground.stand_in.merge_requests(&ground.project).len(), 2, "{state}");
    }
}

#[tokio::test]
async fn notes_are_found_on_later_pages_and_after_lost_answers() {
    let ground = GitLabGround::with_main().await;
    let issue = ground.issue();
    ground.stand_in.fault(Fault::AnswerLost { route: Route::CreateNote, times: 1 });
    ground.forge.ensure_note(issue, "job:1", "/close\n\nneeds a human").await.expect("it is put");
    for number in 0..250 {
        ground.stand_in.add_note(&ground.project, issue, &format!("chatter {number}"));
    }
    let pages = ground.stand_in.count(Route::Notes);
    ground.forge.ensure_note(issue, "job:1", "needs a human").await.expect("it is there");
    assert_eq!(ground.stand_in.count(Route::Notes), pages + 3);
    let notes = ground.stand_in.notes(&ground.project, issue);
    assert_eq!(notes.len(), 251);
    assert_eq!(notes[0].body, "\u{200B}/close\n\nneeds a human\n\n<!-- devfleet:job:1 -->");
    assert_eq!(notes[0].author, "devfleet-bot");
    let error = ground.forge.ensure_note(99, "job:1", "x").await.expect_err("there is no such issue");
    assert_eq!(kind(&error), "not found", "{error}");
}

#[tokio::test]
async fn a_note_is_put_once_by_many_at_once_though_gitlab_takes_its_time() {
    let ground = GitLabGround::with_main().await;
    let issue = ground.issue();
    let delay = Duration::from_millis(150);
    ground.stand_in.fault(Fault::Delay { route: Route::CreateNote, delay, times: 5 });
    let put = join_all((0..5).map(|_| ground.forge.ensure_note(issue, "job:1", "needs a human"))).await;
    assert!(put.into_iter().all(|put| put.is_ok()));
    assert_eq!(ground.stand_in.notes(&ground.project, issue).len(), 1);
}

#[tokio::test]
async fn what_reaches_gitlab_commands_nothing() {
    let ground = GitLabGround::with_main().await;
    let commit = ground.commit("work", &[("a", "a\n")]);
    let mut careless = draft("work", &commit);
    careless.title = "a\nvery long title ".repeat(40);
    careless.description = "fine\n/merge\n  /approve".to_owned();
    ground.forge.ensure_merge_request(&careless).await.expect("it is opened");
    let made = ground.stand_in.merge_requests(&ground.project).remove(0);
    assert_eq!(made.description, "fine\n\u{200B}/merge\n  \u{200B}/approve");
    assert_eq!((made.title.chars().count(), made.title.contains('\n')), (255, false));
    let asked = ground.stand_in.ledger().into_iter().find(|call| call.route == Route::CreateMergeRequest);
    let body = asked.expect("it was asked for").body;
    assert!(body.contains(r#""target_branch":"main""#) && !body.contains("\\n/merge"), "{body}");
}

#[tokio::test]
async fn the_ci_configuration_is_taken_as_far_as_gitlab_gets() {
    let ground = GitLabGround::with_main().await;
    let commit = ground.commit(
        "main",
        &[(".gitlab-ci.yml", "include: [{local: /ci/a.yml}, {project: x/y, file: z.yml}]\n"), ("ci/a.yml", super::CI)],
    );
    match ground.forge.ci_config(&commit).await.expect("the files are read instead") {
        CiConfig::Raw { path, files, notes } => {
            assert_eq!(path, ".gitlab-ci.yml");
            assert_eq!(files[1], ("ci/a.yml".to_owned(), super::CI.to_owned()));
            assert!(notes[0].contains("GitLab could not merge") && notes[1].contains("project x/y"), "{notes:?}");
        }
        other => panic!("expected the raw files: {other:?}"),
    }

    let mut flawed = LintAnswer::merged("---\na: b\n");
    flawed.valid = false;
    flawed.errors.push("jobs config should contain at least one visible job".to_owned());
    flawed.warnings.push("careful".to_owned());
    flawed.includes.push(("local".to_owned(), "ci/a.yml".to_owned()));
    ground.stand_in.lint_answer(&ground.project, flawed);
    let expected = CiConfig::Merged {
        yaml: "---\na: b\n".to_owned(),
        errors: vec!["jobs config should contain at least one visible job".to_owned()],
        warnings: vec!["careful".to_owned()],
        files: vec![".gitlab-ci.yml".to_owned(), "ci/a.yml".to_owned()],
    };
    assert_eq!(ground.forge.ci_config(&commit).await.expect("what is merged is usable"), expected);

    for (answer, expected, calls) in [
        ("(<unknown>): did not find expected key at line 2", "invalid ci config", 1),
        ("Please provide content of .gitlab-ci.yml", "no ci config", 1),
        ("Request timed out when fetching configuration files.", "unavailable", 4),
    ] {
        ground.stand_in.lint_answer(&ground.project, LintAnswer::unusable(answer));
        let before = ground.stand_in.count(Route::Lint);
        let error = ground.forge.ci_config(&commit).await.expect_err("it cannot be used");
        assert_eq!(kind(&error), expected, "{error}");
        assert_eq!(ground.stand_in.count(Route::Lint), before + calls, "{answer}");
    }
    let asked = ground.stand_in.ledger().into_iter().rfind(|call| call.route == Route::Lint).expect("lint was asked");
    assert!(asked.path.ends_with(&format!("/ci/lint?content_ref={commit}")), "{}", asked.path);
}

#[tokio::test]
async fn the_check_names_what_a_token_lacks_and_never_insists() {
    let ground = GitLabGround::with_main().await;
    let stand_in = &ground.stand_in;
    for (token, expected, says) in [
        (Some("glpat-canary-wrong".to_owned()), "unauthorized", "forge.token"),
        (Some("two\nlines".to_owned()), "unauthorized", "line break"),
        (Some(stand_in.token_of(Standing::Expired, Scope::Api)), "unauthorized", "expired"),
        (Some(stand_in.token_of(Standing::Revoked, Scope::Api)), "unauthorized", "revoked"),
        (Some(stand_in.token(Scope::WriteRepository)), "forbidden", "read_api"),
        (Some(stand_in.token(Scope::ReadApi)), "forbidden", "the token has only read_api"),
        (Some(stand_in.token_of(Standing::Guest, Scope::Api)), "forbidden", "access level is 10"),
        (Some(stand_in.token_of(Standing::Outsider, Scope::Api)), "not found", "the token may see it"),
        (None, "not found", "404"),
    ] {
        let before = stand_in.ledger().len();
        let forge = gitlab(stand_in, token.clone(), PATIENT);
        let error = forge.check().await.expect_err("it does not suffice");
        assert!(kind(&error) == expected && error.to_string().contains(says), "{error}");
        assert!(token.is_none_or(|token| !format!("{error} {error:?}").contains(&token)), "{error:?}");
        assert!(stand_in.ledger().len() <= before + 2, "{error}");
    }
    stand_in.make_public(&ground.project);
    let error = gitlab(stand_in, None, PATIENT).check().await.expect_err("reading alone does not suffice");
    assert!(error.to_string().contains("no token is set"), "{error}");
    let found = ground.forge.check().await.expect("a developer's token suffices");
    assert!(found.contains("19.1.0") && found.contains("group/sub/app") && found.contains("main"), "{found}");
}

#[tokio::test]
async fn the_token_shows_nowhere() {
    let ground = GitLabGround::with_main().await;
    let token = ground.stand_in.token(Scope::Api);
    let settings = GitLabSettings {
        url: ground.stand_in.url(),
        project: "101".to_owned(),
        token: Some(Secret::new(token.clone())),
        ci_config_path: ".gitlab-ci.yml".to_owned(),
    };
    assert!(!format!("{settings:?}").contains(&token));
    let forge = GitLab::with_pace(settings, super::grounds::quick(PATIENT)).expect("the address is one");
    let access = forge.git_access().await.expect("there is a way in");
    assert!(
        access.url == format!("{}/group/sub/app.git", ground.stand_in.url()) && !format!("{access:?}").contains(&token)
    );
    let (name, secret) = access.login.expect("there is a login");
    assert_eq!((name.as_str(), secret.expose()), ("oauth2", token.as_str()));
    for call in ground.stand_in.ledger() {
        assert!(!format!("{call:?}").contains(&token), "{call:?}");
        assert_eq!((call.principal.as_str(), call.method.as_str()), ("Developer Api", "GET"), "{call:?}");
    }
}
