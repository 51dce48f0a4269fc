//! The gates over a real store and a GitLab that speaks its protocol: what is proposed, and when it is proposed again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use devfleet_controller::forges::Forges;
use devfleet_controller::gates::{Gates, difference};
use devfleet_controller::jobs::Jobs;
use devfleet_controller::project::ProjectConfig;
use devfleet_controller::store::SharedStore;
use devfleet_controller::store::embedded::Embedded;
use devfleet_controller::store::records::{JobSpec, JobState, Proposal};
use devfleet_controller::view::View;
use devfleet_shared::attempt::Step;
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::id::{Digest, JobId};
use devfleet_shared::job::{JobPhase, Outcome};
use serde_json::json;

use crate::jobs::term;
use crate::support::gitlab::{Fault, GitLabStandIn, LintAnswer, ProjectHandle, Route, Scope, Standing};

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const CI: &str = "test:\n  image: python:3.11\n  before_script: [pip install .]\n  script: [pytest]\n";

struct Bench {
    gitlab: GitLabStandIn,
    app: ProjectHandle,
    store: SharedStore,
    jobs: Arc<Jobs>,
    gates: Gates,
    config: ProjectConfig,
    _directory: tempfile::TempDir,
}

impl Bench {
    /// A repository with these files, and a project with these lines in its settings.
    async fn with(files: &[(&str, &str)], settings: &str) -> Self {
        let gitlab = GitLabStandIn::start().await;
        let app = gitlab.create_project("team/app", files);
        let directory = tempfile::tempdir().expect("dir");
        let clock = Clock::fixed(NOW);
        let store: SharedStore = Embedded::open(&directory.path().join("store"), clock.clone()).expect("store");
        let jobs = Jobs::new(store.clone(), clock);
        let forges = Forges::new(store.clone(), directory.path().join("forges"));
        let gates = Gates { jobs: Arc::clone(&jobs), forges };
        let token = gitlab.token_of(Standing::Maintainer, Scope::Api);
        let config = ProjectConfig::parse(&format!(
            "name = \"app\"\n{settings}\n[forge]\nkind = \"gitlab\"\nurl = {:?}\nproject = \"team/app\"\n\
             token = \"command://echo {token}\"\n[agents.fix]\nkind = \"script\"\ncommand = \"true\"\n",
            gitlab.url()
        ))
        .expect("the project is right");
        Self { gitlab, app, store, jobs, gates, config, _directory: directory }
    }

    async fn submit(&self, base: Option<&str>) -> JobId {
        let spec = JobSpec {
            id: JobId::random(),
            project: "app".parse().expect("a name"),
            title: "mend it".into(),
            task: "mend it".into(),
            plan: String::new(),
            agent: "fix".parse().expect("a name"),
            base: base.map(str::to_owned),
            hold: Duration::ZERO,
            issue: None,
            priority: 0,
            submitted_by: "ada".into(),
            submitted: NOW,
        };
        let key = Digest::of(spec.id.as_str().as_bytes());
        self.jobs.submit(&spec, &key, &key).await.expect("submitted").0
    }

    async fn records(&self, id: &JobId) -> devfleet_controller::view::JobRecords {
        let view = View::open(&self.store).await.expect("a view");
        let records = view.read();
        records.job(id).expect("the job is there")
    }

    async fn state(&self, id: &JobId) -> JobState {
        (*self.records(id).await.state).clone()
    }

    /// Brings a job through its gates, and returns the proposal or the job's end.
    async fn passed(&self, base: Option<&str>) -> (JobId, Result<Proposal, String>) {
        let id = self.submit(base).await;
        self.gates.pass(&term(), &self.records(&id).await, Some(&self.config)).await.expect("it moves");
        let outcome = match self.state(&id).await.phase {
            JobPhase::Ended(Outcome::Failed(failure)) => Err(failure.message),
            _ => Ok(self.jobs.proposal(&id).await.expect("read").expect("a proposal")),
        };
        (id, outcome)
    }

    /// Proposes and approves.
    async fn approved(&self) -> (JobId, Proposal) {
        let (id, proposal) = self.passed(None).await;
        let proposal = proposal.expect("a proposal");
        if self.state(&id).await.phase == JobPhase::AwaitingApproval {
            self.jobs.approve(&id, Some(&proposal.digest), "ada").await.expect("approved");
        }
        (id, proposal)
    }

    async fn recheck(&self, id: &JobId) -> JobState {
        self.gates.recheck(&term(), &self.records(id).await, Some(&self.config)).await.expect("it moves");
        self.state(id).await
    }
}

fn origins<'a>(proposal: &'a Proposal, fact: &str) -> Vec<&'a str> {
    proposal.report.iter().filter(|line| line.fact == fact).map(|line| line.file.as_str()).collect()
}

#[tokio::test]
async fn overrides_count_from_the_default_branch_and_from_no_other() {
    let bench = Bench::with(&[(".gitlab-ci.yml", CI), (".devfleet.toml", "\nverify = [\"pytest -q\"]\n")], "").await;
    bench.gitlab.commit(&bench.app, "feature", &[(".devfleet.toml", "verify = [\"true\"]\n")]);
    for base in [None, Some("feature")] {
        let (_, proposal) = bench.passed(base).await;
        let proposal = proposal.expect("a proposal");
        assert_eq!(proposal.environment.verify, ["pytest -q"], "{base:?}");
        assert_eq!(proposal.environment.image, "python:3.11");
        assert_eq!(origins(&proposal, "verify"), [".devfleet.toml:2"]);
    }
}

#[tokio::test]
async fn overrides_that_cannot_be_used_end_the_job_with_line_and_key() {
    let files = [(".gitlab-ci.yml", CI), (".devfleet.toml", "image = \"ruby:3.2\"\nverfy = []\n")];
    let (_, outcome) = Bench::with(&files, "").await.passed(None).await;
    let message = outcome.expect_err("the file is wrong");
    assert!(message.contains("line 2, key `verfy`") && message.contains(".devfleet.toml"), "{message}");
}

#[tokio::test]
async fn a_project_can_forbid_overrides_and_a_repository_without_ci_can_live_by_them() {
    let overrides = (".devfleet.toml", "image = \"ruby:3.2\"\nverify = [\"rake\"]\negress = [\"rubygems.org\"]\n");
    let forbidden = Bench::with(&[(".gitlab-ci.yml", CI), overrides], "overrides = \"forbid\"").await;
    let proposal = forbidden.passed(None).await.1.expect("a proposal");
    assert_eq!((proposal.environment.image.as_str(), proposal.declared.egress), ("python:3.11", None));
    assert!(proposal.notes.iter().any(|note| note.contains("settings forbid it")), "{:?}", proposal.notes);

    let without_ci = Bench::with(&[("README.md", "hello\n"), overrides], "").await;
    let proposal = without_ci.passed(None).await.1.expect("a proposal");
    assert_eq!(
        (proposal.environment.image.as_str(), proposal.environment.verify),
        ("ruby:3.2", vec!["rake".to_owned()])
    );
    assert_eq!(proposal.declared.egress, Some(vec!["rubygems.org".to_owned()]));
    let (_, refused) = Bench::with(&[("README.md", "hello\n")], "").await.passed(None).await;
    assert!(refused.expect_err("no CI, no overrides").contains("does not exist"));
}

#[tokio::test]
async fn a_guess_waits_for_a_person_whatever_the_projects_policy_is() {
    // No job has an image: it is guessed from what the commands run.
    let guessed = "test:\n  script: [pip install ., pytest]\n";
    for (ci, phase) in [(CI, JobPhase::Queued), (guessed, JobPhase::AwaitingApproval)] {
        let bench = Bench::with(&[(".gitlab-ci.yml", ci)], "approval = \"auto\"").await;
        let (id, proposal) = bench.passed(None).await;
        assert!(proposal.expect("a proposal").environment.image.starts_with("python"), "{ci}");
        assert_eq!(bench.state(&id).await.phase, phase, "{ci}");
    }
}

#[tokio::test]
async fn what_is_declared_is_part_of_what_is_approved() {
    let digest = async |overrides: &str| {
        let bench = Bench::with(&[(".gitlab-ci.yml", CI), (".devfleet.toml", overrides)], "").await;
        let mut proposal = bench.passed(None).await.1.expect("a proposal");
        // Commits, and the stand-in's address, differ from run to run.
        proposal.base.commit.clear();
        proposal.environment.variables.clear();
        proposal.repository.clear();
        proposal.digest_of().expect("a digest")
    };
    let plain = digest("").await;
    assert_eq!(plain, digest("# nothing\n").await);
    for text in ["egress = [\"pypi.org\"]\n", "[budget]\ntokens = 5000\n", "[components.api]\npaths = [\"api\"]\n"] {
        assert_ne!(plain, digest(text).await, "{text}");
    }
}

#[tokio::test]
async fn what_gitlab_calls_invalid_and_merges_all_the_same_is_used_and_marked() {
    let bench = Bench::with(&[(".gitlab-ci.yml", CI)], "").await;
    let sure = bench.passed(None).await.1.expect("a proposal").confidence;
    let answer = LintAnswer {
        errors: vec!["test job: undefined need: build".into()],
        warnings: vec!["jobs:test may allow multiple pipelines to run".into()],
        merged_yaml: Some(CI.to_owned()),
        ..LintAnswer::default()
    };
    bench.gitlab.lint_answer(&bench.app, answer);
    let proposal = bench.passed(None).await.1.expect("a proposal");
    assert_eq!(proposal.environment.image, "python:3.11");
    assert!(proposal.confidence < sure, "{} and {sure}", proposal.confidence);
    for told in ["undefined need: build", "multiple pipelines"] {
        assert!(proposal.notes.iter().any(|note| note.contains(told)), "{told}: {:?}", proposal.notes);
    }
    bench.gitlab.lint_answer(&bench.app, LintAnswer::unusable("Local file `x.yml` does not exist!"));
    let proposal = bench.passed(None).await.1.expect("the raw file serves");
    assert_eq!(proposal.environment.image, "python:3.11");
    assert!(proposal.notes.iter().any(|note| note.contains("x.yml")), "{:?}", proposal.notes);
    let asked = bench.gitlab.ledger().into_iter().filter(|call| call.route == Route::Lint);
    let commit = bench.gitlab.head(&bench.app, "main").expect("a commit");
    assert!(asked.into_iter().all(|call| call.path.contains(&commit)), "each lint is for the exact commit");
}

#[tokio::test]
async fn allowed_ci_variables_are_looked_for_by_name_and_what_is_missing_is_said() {
    let settings = "[ci_variables]\nINDEX = [\"setup\"]\nDSN = [\"setup\", \"verify\"]\nGONE = [\"agent\"]\n\
                    KEPT = [\"setup\"]\nPYTEST = [\"verify\"]\n";
    let ci = format!("variables: {{PYTEST: x}}\n{CI}");
    let bench = Bench::with(&[(".gitlab-ci.yml", &ci)], settings).await;
    for number in 0..150 {
        bench.gitlab.set_variable(&bench.app, &format!("OTHER_{number}"), "canary-other", &json!({}));
    }
    bench.gitlab.set_variable(&bench.app, "INDEX", "canary-index", &json!({}));
    bench.gitlab.set_variable(&bench.app, "DSN", "canary-production", &json!({"environment_scope": "production"}));
    bench.gitlab.set_variable(&bench.app, "DSN", "canary-dsn", &json!({}));
    bench.gitlab.set_variable(&bench.app, "KEPT", "canary-kept", &json!({"protected": true}));
    let (id, proposal) = bench.passed(None).await;
    let proposal = proposal.expect("a proposal");
    let expected =
        BTreeMap::from([("DSN".to_owned(), vec![Step::Setup, Step::Verify]), ("INDEX".to_owned(), vec![Step::Setup])]);
    assert_eq!(proposal.ci_variables, expected);
    for told in [
        "GONE is not handed over: the project has none, and the token may not read those of group team",
        "KEPT is not handed over: it is protected",
        "PYTEST stands in the CI file",
    ] {
        assert!(proposal.notes.iter().any(|note| note.contains(told)), "{told}: {:?}", proposal.notes);
    }
    let stored = bench.store.range("/devfleet/").await.expect("read");
    let found = stored.entries.iter().find(|entry| String::from_utf8_lossy(&entry.value).contains("canary-"));
    assert!(found.is_none(), "a value is stored at {:?}", found.map(|entry| &entry.key));
    assert_eq!(bench.state(&id).await.phase, JobPhase::AwaitingApproval);
}

#[tokio::test]
async fn a_token_that_may_not_read_ci_variables_says_what_it_needs() {
    let mut bench = Bench::with(&[(".gitlab-ci.yml", CI)], "[ci_variables]\nINDEX = [\"setup\"]\n").await;
    let token = bench.gitlab.token(Scope::Api);
    if let devfleet_controller::project::ForgeConfig::Gitlab { token: reference, .. } = &mut bench.config.forge {
        *reference = format!("command://echo {token}").parse().expect("a reference");
    }
    let message = bench.passed(None).await.1.expect_err("a Developer may not");
    assert!(message.contains("Maintainer"), "{message}");
}

#[tokio::test]
async fn a_job_starts_as_approved_when_nothing_it_comes_from_has_changed() {
    let bench = Bench::with(&[(".gitlab-ci.yml", CI)], "").await;
    let (id, approved) = bench.approved().await;
    assert_eq!(bench.state(&id).await.current, None, "somebody has to look after the approval");
    let lints = bench.gitlab.count(Route::Lint);
    assert_eq!(bench.recheck(&id).await.current, Some(NOW));
    assert_eq!(bench.gitlab.count(Route::Lint), lints, "the branch has not moved");

    bench.gitlab.commit(&bench.app, "main", &[("README.md", "hello\n")]);
    bench.gitlab.commit(&bench.app, "main", &[(".gitlab-ci.yml", &format!("# a word\n{CI}"))]);
    let state = bench.recheck(&id).await;
    assert_eq!((state.phase, state.proposal), (JobPhase::Queued, Some(approved.digest.clone())));
    assert_eq!(state.base, Some(approved.base), "the work begins at the approved commit");
    assert_eq!(bench.jobs.former_proposal(&id).await.expect("read"), None);
}

#[tokio::test]
async fn a_changed_ci_configuration_goes_back_to_approval_and_the_former_approval_is_void() {
    let bench = Bench::with(&[(".gitlab-ci.yml", CI)], "").await;
    let (id, approved) = bench.approved().await;
    let tip = bench.gitlab.commit(&bench.app, "main", &[(".gitlab-ci.yml", &CI.replace("3.11", "3.12"))]);
    let state = bench.recheck(&id).await;
    assert_eq!((&state.phase, &state.approved_by), (&JobPhase::AwaitingApproval, &None));
    assert!(state.trouble.expect("a hint").contains("devfleet env diff"));
    let now = bench.jobs.proposal(&id).await.expect("read").expect("a proposal");
    assert_eq!((now.base.commit.as_str(), now.environment.image.as_str()), (tip.as_str(), "python:3.12"));
    assert!(bench.jobs.approve(&id, Some(&approved.digest), "ada").await.is_err(), "the digest is another now");
    let former = bench.jobs.former_proposal(&id).await.expect("read").expect("kept");
    assert_eq!(former, approved);
    let changes = difference::changes(&former, &now);
    let image = changes.iter().find(|change| change.fact == "image").expect("it is told");
    assert_eq!((image.former.as_str(), image.now.as_str()), ("python:3.11", "python:3.12"));
    assert!(!changes.iter().any(|change| change.fact == "verify"), "{changes:?}");
    let dockerfile = difference::lines(&former.recipe.dockerfile, &now.recipe.dockerfile);
    assert!(dockerfile.contains("- FROM python:3.11\n+ FROM python:3.12\n"), "{dockerfile}");

    bench.jobs.approve(&id, Some(&now.digest), "ada").await.expect("approved anew");
    let state = bench.recheck(&id).await;
    assert_eq!((state.phase, state.current), (JobPhase::Queued, Some(NOW)));
}

#[tokio::test]
async fn changed_overrides_are_drift_too_and_a_project_that_approves_by_itself_goes_on() {
    let bench = Bench::with(&[(".gitlab-ci.yml", CI)], "approval = \"auto\"").await;
    let (id, approved) = bench.approved().await;
    assert_eq!(bench.state(&id).await.current, Some(NOW), "it was just derived");
    bench.gitlab.commit(&bench.app, "main", &[(".devfleet.toml", "verify = [\"pytest -q\"]\n")]);
    let state = bench.recheck(&id).await;
    assert_eq!(state.phase, JobPhase::Queued);
    assert_ne!(state.proposal, Some(approved.digest));
    assert!(state.approved_by.expect("by policy").contains("auto"));
    let now = bench.jobs.proposal(&id).await.expect("read").expect("a proposal");
    assert_eq!(now.environment.verify, ["pytest -q"]);
}

#[tokio::test]
async fn a_look_that_fails_is_repeated_and_a_configuration_that_broke_ends_the_job() {
    let bench = Bench::with(&[(".gitlab-ci.yml", CI)], "").await;
    let (id, _) = bench.approved().await;
    bench.gitlab.fault(Fault::Nonsense { route: Route::Branch, body: "a portal".into(), times: 1 });
    let state = bench.recheck(&id).await;
    assert_eq!((&state.phase, state.tries, state.current), (&JobPhase::Queued, 1, None));
    assert!(state.not_before > NOW && state.trouble.is_some());
    bench.gitlab.commit(&bench.app, "main", &[(".devfleet.toml", "image = 3\n")]);
    let state = bench.recheck(&id).await;
    let JobPhase::Ended(Outcome::Failed(failure)) = state.phase else { panic!("{:?}", state.phase) };
    assert!(failure.message.contains("line 1, key `image`"), "{}", failure.message);
}
