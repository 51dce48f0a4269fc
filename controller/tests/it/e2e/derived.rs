//! Projects of several languages on real Docker: each derived, built, set up, worked on and verified for real; and the
//! compose file that people get, compared with what a step sees.

use std::process::Command;

use devfleet_proto::v1;

use super::scene::project;
use crate::support::site::{Site, docker};

const LIMITS: &str = "[limits]\nmemory = \"512MiB\"\ndisk = \"64MiB\"\nservice_ready = \"90s\"\n";

/// Brings a repository with these files from submission to merge request, and returns job and log.
async fn carried_through(site: &Site, files: &[(&str, &str)], agent: &str) -> (v1::Job, String) {
    let repository = site.repository("app", files);
    let text = project("app", &repository.path.display().to_string(), agent, "approval = \"auto\"");
    site.apply(&format!("{text}{LIMITS}")).await;
    let job = site.submit("app", "Make the tests pass").await;
    let job = site.ended(&job.id).await;
    let log = site.whole_log(&job.id).await;
    assert_eq!(job.outcome, "succeeded", "{job:#?}\n{log}\n{}", site.program_logs());
    assert_eq!(site.leftovers(), Vec::<String>::new());
    (job, log)
}

const PYTHON_CI: &str = "
image: devfleet-test/python:3.11
variables:
  POSTGRES_DB: shop
  POSTGRES_PASSWORD: only-for-tests
services:
  - name: devfleet-test/postgres:15
    alias: db
before_script:
  - pip install -r requirements.txt
test:
  script:
    - python -m pytest -q
";
const PYTHON_TEST: &str = "
import os
import psycopg2
from tabulate import tabulate

def test_the_answer_comes_back_from_the_database():
    connection = psycopg2.connect(host='db', user='postgres', password=os.environ['POSTGRES_PASSWORD'], dbname=os.environ['POSTGRES_DB'])
    cursor = connection.cursor()
    cursor.execute('create temporary table answers (answer integer)')
    cursor.execute('insert into answers values (%s)', (int(open('answer.txt').read()),))
    cursor.execute('select answer from answers')
    assert tabulate(cursor.fetchall(), tablefmt='plain') == '42'
";

#[tokio::test(flavor = "multi_thread")]
async fn a_python_project_with_postgresql_installs_its_packages_and_is_verified() {
    let files = [
        (".gitlab-ci.yml", PYTHON_CI),
        ("requirements.txt", "tabulate==0.9.0\n"),
        ("test_answer.py", PYTHON_TEST),
        ("answer.txt", "41\n"),
    ];
    let (_, log) = carried_through(&Site::usual().await, &files, "echo 42 > answer.txt\n").await;
    assert!(log.contains("tabulate") && log.contains("1 passed"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ruby_project_with_redis_is_set_up_and_verified() {
    let ci = "
test:
  image: devfleet-test/ruby:3.1
  services: [devfleet-test/redis:7]
  variables: {REDIS_HOST: devfleet-test-redis}
  before_script: [ruby --version]
  script: [rspec answer_spec.rb]
";
    let spec = "require 'redis'
describe 'the answer' do
  it 'comes back from Redis' do
    redis = Redis.new(host: ENV.fetch('REDIS_HOST'))
    redis.set('answer', File.read('answer.txt').strip)
    expect(redis.get('answer')).to eq('42')
  end
end
";
    let files = [(".gitlab-ci.yml", ci), ("answer_spec.rb", spec), ("answer.txt", "41\n")];
    let (_, log) = carried_through(&Site::usual().await, &files, "echo 42 > answer.txt\n").await;
    assert!(log.contains("1 example, 0 failures"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_project_is_verified_by_its_own_test_runner() {
    let ci = "test:\n  image: devfleet-test/node:18\n  script: [node --test]\n";
    let test = "const test = require('node:test');\nconst assert = require('node:assert');\nconst fs = require('node:fs');\n\
                test('the answer', () => assert.strictEqual(fs.readFileSync('answer.txt', 'utf8').trim(), '42'));\n";
    let files = [(".gitlab-ci.yml", ci), ("answer.test.js", test), ("answer.txt", "41\n")];
    let (_, log) = carried_through(&Site::usual().await, &files, "echo 42 > answer.txt\n").await;
    assert!(log.contains("# pass 1") && log.contains("# fail 0"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_no_distribution_serves_as_long_as_it_has_a_shell_and_git() {
    let ci = "test:\n  image: devfleet-test/plain:1\n  before_script: [busybox --help | head -n 1]\n  script: [sh test.sh]\n";
    let test = "set -e\ntest ! -e /etc/os-release\ngrep -q 42 answer.txt\necho the answer is right\n";
    let files = [(".gitlab-ci.yml", ci), ("test.sh", test), ("answer.txt", "41\n")];
    let (_, log) = carried_through(&Site::usual().await, &files, "echo 42 > answer.txt\n").await;
    assert!(log.contains("BusyBox v") && log.contains("the answer is right"), "{log}");
}

/// No apt, no git, and another family's package manager: what the recipe installs with it is there, and so is what CI wants.
#[tokio::test(flavor = "multi_thread")]
async fn bases_of_other_families_get_git_and_packages_from_their_own_package_manager() {
    for (image, line) in [
        ("devfleet-test/dnf:1", "dnf install -y answer-tool"),
        ("devfleet-test/zypper:1", "zypper refresh && zypper -n in answer-tool"),
        ("devfleet-test/pacman:1", "pacman -Syu --noconfirm answer-tool"),
    ] {
        let ci = format!("test:\n  image: {image}\n  before_script: [{line}]\n  script: [sh test.sh]\n");
        let test = "set -e\n! command -v apt-get\ngit --version\n/opt/answer-tool\ngrep -q 42 answer.txt\n";
        let files = [(".gitlab-ci.yml", ci.as_str()), ("test.sh", test), ("answer.txt", "41\n")];
        let (_, log) = carried_through(&Site::usual().await, &files, "echo 42 > answer.txt\n").await;
        assert!(log.contains("the answer tool says 42") && log.contains("git version"), "{image}: {log}");
    }
}

/// What is to be the same in both: image, variables, names, and what answers under them.
const LOOK: &str = r#"sed -n 's/^ID=/os /p' /etc/os-release
python --version
env | grep -E '^(GREETING|AWKWARD|POSTGRES_DB|CI|CI_PROJECT_DIR)=' | sort
pwd
for name in redis cache devfleet-test-redis nobody; do
  if getent hosts $name >/dev/null; then echo "$name is known"; else echo "$name is unknown"; fi
done
python -c "import redis; print('redis answers', redis.Redis(host='cache').ping())"
"#;

fn seen(text: &str) -> Vec<String> {
    let inside = text.lines().skip_while(|line| *line != "look begins").skip(1);
    inside.take_while(|line| *line != "look ends").map(str::to_owned).collect()
}

/// Takes down what compose brought up.
struct Composed<'a>(&'a std::path::Path);

impl Composed<'_> {
    fn run(&self, arguments: &[&str]) -> String {
        let output =
            Command::new("docker-compose").args(arguments).current_dir(self.0).env("DOCKER_BUILDKIT", "0").output();
        let output = output.expect("this test needs docker-compose; run: deploy/setup.sh test");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Composed<'_> {
    fn drop(&mut self) {
        let down = ["down", "--volumes", "--rmi", "local", "--timeout", "1"];
        let _ = Command::new("docker-compose").args(down).current_dir(self.0).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_compose_brings_up_is_what_a_step_sees() {
    let ci = "
test:
  image: devfleet-test/python:3.11
  variables: {GREETING: 'hello $$HOME \"you\"', AWKWARD: 'a: b # c'}
  services:
    - name: devfleet-test/redis:7
      alias: cache redis
  script: [sh look.sh]
";
    let site = Site::usual().await;
    let look = format!("echo look begins\n{LOOK}echo look ends\n");
    let repository = site.repository("app", &[(".gitlab-ci.yml", ci), ("look.sh", &look)]);
    let text = project("app", &repository.path.display().to_string(), "echo 42 > answer.txt\n", "approval = \"auto\"");
    site.apply(&format!("{text}{LIMITS}")).await;
    let job = site.submit("app", "Look around").await;
    let job = site.ended(&job.id).await;
    let log = site.whole_log(&job.id).await;
    assert_eq!(job.outcome, "succeeded", "{job:#?}\n{log}");
    let by_step = seen(&log);

    let proposal = site.connection().jobs().get_proposal(v1::GetProposalRequest { job: job.id.clone() }).await;
    let proposal = proposal.expect("a proposal").into_inner();
    let folder = tempfile::Builder::new().prefix("devfleet-compose-").tempdir().expect("a folder");
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    put("docker-compose.yml", &proposal.compose);
    put("Dockerfile", &proposal.recipe.expect("a recipe").dockerfile);
    put("look.sh", &look);
    let composed = Composed(folder.path());
    let config = composed.run(&["config"]);
    assert!(config.contains("devfleet-test/redis:7"), "{config}");
    composed.run(&["up", "--detach", "--build"]);
    let by_compose = seen(&composed.run(&["exec", "-T", "devbox", "sh", "look.sh"]));
    assert_eq!(by_compose, by_step);
    assert!(by_step.contains(&"redis answers True".to_owned()) && by_step.contains(&"nobody is unknown".to_owned()));
    assert!(by_step.contains(&"GREETING=hello $HOME \"you\"".to_owned()), "{by_step:?}");
    let base = docker(&["image", "inspect", "--format", "{{index .RootFS.Layers 0}}", "devfleet-test/python:3.11"]);
    let id = composed.run(&["images", "--quiet", "devbox"]);
    let built = docker(&["image", "inspect", "--format", "{{index .RootFS.Layers 0}}", id.trim()]);
    assert_eq!(built, base, "both stand on the same image");
}
