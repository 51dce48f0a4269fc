//! The stand-in itself: that real git and a plain HTTP client find in it what they would find in a GitLab.

use std::path::Path;
use std::process::Output;

use crate::support::gitlab::{GitLabStandIn, LintAnswer, Route, Scope, Standing};

/// Runs git as somebody who knows nothing of the machine's settings; off the async threads, as it speaks to us.
async fn git(directory: &Path, args: &[&str]) -> Output {
    let mut command = tokio::process::Command::new("git");
    command
        .current_dir(directory)
        .args(args)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_ASKPASS", "true");
    for (name, value) in [
        ("GIT_AUTHOR_NAME", "Sam"),
        ("GIT_AUTHOR_EMAIL", "sam@example.org"),
        ("GIT_COMMITTER_NAME", "Sam"),
        ("GIT_COMMITTER_EMAIL", "sam@example.org"),
    ] {
        command.env(name, value);
    }
    command.output().await.expect("run git")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn address(stand_in: &GitLabStandIn, token: &str) -> String {
    format!("{}/group/app.git", stand_in.url()).replace("http://", &format!("http://oauth2:{token}@"))
}

#[tokio::test]
async fn git_clones_and_pushes_with_a_token_and_is_told_why_it_may_not() {
    let stand_in = GitLabStandIn::start().await;
    let project = stand_in.create_project("group/app", &[("README.md", "hello\n"), ("src/a.txt", "a\n")]);
    stand_in.protect(&project, "main");
    let here = tempfile::tempdir().expect("make a directory");
    let (writer, reader) = (stand_in.token(Scope::WriteRepository), stand_in.token(Scope::ReadRepository));

    let anonymous = git(here.path(), &["clone", &address(&stand_in, "wrong"), "no"]).await;
    assert!(!anonymous.status.success() && errors(&anonymous).contains("Authentication failed"), "{anonymous:?}");
    let cloned = git(here.path(), &["clone", &address(&stand_in, &writer), "app"]).await;
    assert!(cloned.status.success(), "{cloned:?}");
    let tree = here.path().join("app");
    assert_eq!(std::fs::read_to_string(tree.join("src/a.txt")).expect("the file is there"), "a\n");

    std::fs::write(tree.join("README.md"), "changed\n").expect("change a file");
    assert!(git(&tree, &["commit", "--quiet", "-am", "change"]).await.status.success());
    let pushed = git(&tree, &["push", "origin", "HEAD:refs/heads/work"]).await;
    assert!(pushed.status.success(), "{pushed:?}");
    let head = String::from_utf8(git(&tree, &["rev-parse", "HEAD"]).await.stdout).expect("a hash is text");
    assert_eq!(stand_in.head(&project, "work").as_deref(), Some(head.trim()));

    let protected = git(&tree, &["push", "origin", "HEAD:refs/heads/main"]).await;
    assert!(errors(&protected).contains("protected branches"), "{protected:?}");
    let read_only = git(&tree, &["push", &address(&stand_in, &reader), "HEAD:refs/heads/other"]).await;
    assert!(errors(&read_only).contains("403"), "{read_only:?}");
    stand_in.reject_pushes(&project, Some("no pushes on Sundays"));
    let hooked = git(&tree, &["push", "origin", "HEAD:refs/heads/third"]).await;
    assert!(errors(&hooked).contains("no pushes on Sundays"), "{hooked:?}");
    stand_in.reject_pushes(&project, None);
    assert!(git(&tree, &["push", "origin", "HEAD:refs/heads/third"]).await.status.success());
    assert!(stand_in.count(Route::GitPush) >= 8, "{:#?}", stand_in.ledger());
}

#[tokio::test]
async fn the_api_tells_callers_apart_as_gitlab_does() {
    let stand_in = GitLabStandIn::start().await;
    let project = stand_in.create_project("group/app", &[(".gitlab-ci.yml", "test:\n  script: [make]\n")]);
    let client = client();
    let ask = |path: &str, token: Option<String>| {
        let request = client.get(format!("{}/api/v4{path}", stand_in.url()));
        let request = token.iter().fold(request, |request, token| request.header("PRIVATE-TOKEN", token));
        async move { request.send().await.expect("the stand-in answers").status().as_u16() }
    };
    let project_path = "/projects/group%2Fapp";
    let lint = "/projects/group%2Fapp/ci/lint";
    let cases = [
        (project_path, Some(stand_in.token(Scope::ReadApi)), 200),
        (project_path, None, 404),
        (project_path, Some("glpat-wrong".to_owned()), 401),
        (project_path, Some(stand_in.token(Scope::WriteRepository)), 403),
        (project_path, Some(stand_in.token_of(Standing::Outsider, Scope::Api)), 404),
        (project_path, Some(stand_in.token_of(Standing::Expired, Scope::Api)), 401),
        (project_path, Some(stand_in.token_of(Standing::Revoked, Scope::Api)), 401),
        (lint, Some(stand_in.token_of(Standing::Guest, Scope::Api)), 403),
        (lint, Some(stand_in.token(Scope::ReadApi)), 200),
        ("/projects/101/repository/branches/main", Some(stand_in.token(Scope::Api)), 200),
        ("/projects/101/repository/branches/none", Some(stand_in.token(Scope::Api)), 404),
        ("/version", None, 401),
    ];
    for (path, token, expected) in cases {
        assert_eq!(ask(path, token).await, expected, "{path}");
    }
    assert_eq!(project.id, 101);
    stand_in.make_public(&project);
    assert_eq!(ask(project_path, None).await, 200);
}

#[tokio::test]
async fn lint_judges_the_file_at_the_commit_unless_it_is_scripted() {
    let stand_in = GitLabStandIn::start().await;
    let project = stand_in.create_project("group/app", &[("README.md", "no CI here\n")]);
    let token = stand_in.token(Scope::ReadApi);
    let client = client();
    let ask = |commit: String| {
        let url = format!("{}/api/v4/projects/101/ci/lint?content_ref={commit}", stand_in.url());
        let request = client.get(url).bearer_auth(&token);
        async move {
            let text = request.send().await.expect("the stand-in answers").text().await.expect("it has a body");
            serde_json::from_str::<serde_json::Value>(&text).expect("it is JSON")
        }
    };
    let cases = [
        ("broken: [\n", false, true),
        ("variables: {A: b}\n", false, false),
        ("include: {local: other.yml}\n", false, true),
        ("test:\n  script: make\n", true, false),
    ];
    let missing = ask(stand_in.head(&project, "main").expect("main is there")).await;
    assert_eq!(missing["errors"][0], "Please provide content of .gitlab-ci.yml");
    for (text, valid, null) in cases {
        let commit = stand_in.commit(&project, "main", &[(".gitlab-ci.yml", text)]);
        let answer = ask(commit).await;
        assert_eq!(
            (answer["valid"].as_bool(), answer["merged_yaml"].is_null()),
            (Some(valid), null),
            "{text}: {answer}"
        );
    }
    let mut scripted = LintAnswer::merged("---\nmerged: {script: [true]}\n");
    scripted.includes.push(("local".to_owned(), "other.yml".to_owned()));
    scripted.warnings.push("a warning".to_owned());
    stand_in.lint_answer(&project, scripted);
    let answer = ask("main".to_owned()).await;
    assert_eq!(
        (&answer["includes"][0]["location"], &answer["warnings"][0]),
        (&"other.yml".into(), &"a warning".into())
    );
}

fn client() -> reqwest::Client {
    // Another test may have been first: a provider is there either way.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}
