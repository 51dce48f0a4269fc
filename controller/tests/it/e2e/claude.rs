//! The real Claude Code, in a real environment, against a model with a script: what it is given must be enough for it.

use std::path::{Path, PathBuf};

use devfleet_proto::v1;

use super::scene::{CHECK, ci};
use crate::support::anthropic::{ModelStandIn, Script};
use crate::support::site::{Settings, Site, attempt_phase, docker, failure_reason};

/// Returns Claude Code's program, fetched as `deploy/setup.sh test` does, or nothing with the reason printed.
fn binary() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_BIN_EXE_devfleet-controller")).ancestors().nth(2).expect("a target directory");
    let path = target.join("claude/claude");
    if !path.exists() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/setup.sh");
        let fetched = std::process::Command::new(script).arg("claude").env("CARGO_TARGET_DIR", target).status();
        assert!(fetched.expect("the script can be run").success(), "it is to succeed even if nothing can be fetched");
    }
    if !path.exists() {
        #[expect(clippy::print_stderr, reason = "a test that is left out says why")]
        {
            eprintln!(
                "SKIPPED: Claude Code cannot be had here (no pip, or no package index); {} is missing",
                path.display()
            );
        }
        return None;
    }
    Some(path)
}

/// Submits a job of Claude Code against this model.
async fn submit(site: &Site, name: &str, program: &Path, model: &ModelStandIn) -> v1::Job {
    let repository = site.repository(name, &[(".gitlab-ci.yml", &ci("")), ("check.sh", CHECK), ("answer.txt", "41\n")]);
    let text = format!(
        "name = {name:?}\nrepository = {:?}\napproval = \"auto\"\n[agents.claude]\nkind = \"claude-code\"\nbinary = {:?}\n\
         env.ANTHROPIC_BASE_URL = {:?}\nsecrets.ANTHROPIC_API_KEY = \"env://MODEL_KEY\"\n\
         [limits]\nmemory = \"1GiB\"\ndisk = \"64MiB\"\n",
        repository.path.display().to_string(),
        program.display().to_string(),
        model.url()
    );
    site.apply(&text).await;
    site.submit(name, "Make the answer right").await
}

/// Waits for the end of a job; returns it with its log.
async fn ended(site: &Site, job: &v1::Job) -> (v1::Job, String) {
    let job = site.ended(&job.id).await;
    assert_eq!(site.leftovers(), Vec::<String>::new());
    let log = site.whole_log(&job.id).await;
    (job, log)
}

#[tokio::test(flavor = "multi_thread")]
async fn claude_code_does_its_task_in_the_box_and_its_failures_are_told_in_the_models_words() {
    let Some(program) = binary() else { return };
    let key = "sk-model-key-of-this-test";
    let site = Site::start(Settings { variables: vec![("MODEL_KEY".into(), key.into())], ..Settings::default() }).await;

    let command =
        "while [ ! -e /tmp/go ]; do sleep 0.2; done; echo 42 > answer.txt; echo \"the key is $ANTHROPIC_API_KEY\"";
    let script = Script::Run { command: command.into(), last_words: "The answer is right now.".into() };
    let model = ModelStandIn::start(script, key).await;
    let job = submit(&site, "works", &program, &model).await;
    let working = site.until(&job.id, "its first tokens", |job| job.attempts.iter().any(|one| one.tokens > 0)).await;
    assert_eq!(attempt_phase(&working), "agent", "they are told while it works: {working:#?}");
    docker(&["exec", &format!("devbox-{}-agent", working.attempts[0].id), "touch", "/tmp/go"]);
    let (job, log) = ended(&site, &job).await;
    assert_eq!(job.outcome, "succeeded", "{job:#?}\n{log}");
    assert_eq!(model.calls(), 2, "one call for the command, one with its result");
    assert_eq!(job.attempts[0].tokens, 19 * model.calls() as u64, "it tells what the model's API told it");
    for line in ["\"subtype\":\"init\"", "The answer is right now.", "the key is [masked]", "the answer is right"] {
        assert!(log.contains(line), "{line:?} is missing in:\n{log}");
    }
    assert!(!log.contains(key));

    let script = Script::Refuse { status: 402, kind: "billing_error", message: "job budget exhausted" };
    let model = ModelStandIn::start(script, key).await;
    let (job, log) = ended(&site, &submit(&site, "refused", &program, &model).await).await;
    assert_eq!((job.outcome.as_str(), failure_reason(&job).as_str()), ("failed", "agent"), "{job:#?}\n{log}");
    let message = job.failure.expect("a failure").message;
    assert!(message.contains("402") && message.contains("job budget exhausted"), "{message}");
    assert_eq!(model.calls(), 1, "what is refused for good is not asked again");
}
