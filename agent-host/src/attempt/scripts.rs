//! What each step runs, and which variables it sees. Pure.
//!
//! The workspace is all that one step's container passes to the next. So `agent` and `verify` begin with the `setup`
//! lines again: exactly as in a CI job, where `before_script` and `script` share one shell, its packages and exports.

use std::collections::BTreeMap;

use devfleet_shared::assignment::Assignment;
use devfleet_shared::attempt::Step;
use devfleet_shared::secret::Secret;

use super::course::NOTHING_CHANGED;

/// The branch that a job works on in its workspace.
const BRANCH: &str = "devfleet";
/// The longest title of the commit that `collect` makes, in characters.
const TITLE_LIMIT: usize = 72;

/// Returns the script of a step. `verified` is whether `verify` ran: then what `collect` brings is saved already.
pub(super) fn script(assignment: &Assignment, step: Step, verified: bool) -> String {
    let environment = &assignment.environment;
    match step {
        Step::Checkout => checkout(assignment),
        Step::Setup => shown(&environment.setup) + DISREGARD,
        Step::Agent => shown(&environment.setup) + &assignment.agent.command + "\n",
        Step::Verify => save(assignment) + &shown(&environment.setup) + &shown(&environment.verify),
        Step::Collect => collect(assignment, verified),
    }
}

/// What the project's own set-up leaves behind, untracked, is not the agent's work.
const DISREGARD: &str = r#"if [ -d .git ]; then
    mkdir -p .git/info
    git -c core.quotePath=false ls-files --others --exclude-standard --directory \
        | sed -e 's/[][*?!#\\]/\\&/g' -e 's|^|/|' >> .git/info/exclude
fi
"#;

/// Commits what the agent left. Done before `verify`, so that what the tests leave behind is not taken for work.
fn save(assignment: &Assignment) -> String {
    let title = quoted(&title(&assignment.task));
    format!(
        r#"rm -f .git/index.lock .git/HEAD.lock
git add -A
git diff --cached --quiet || git -c core.hooksPath=/dev/null -c gc.auto=0 -c commit.gpgSign=false commit -q --no-verify -m {title}
"#
    )
}

/// Returns the variables of a step. `secrets` are those that the grant has for it; `checkout` and `collect` get none.
pub(super) fn variables(
    assignment: &Assignment,
    step: Step,
    secrets: &BTreeMap<String, Secret>,
) -> BTreeMap<String, Secret> {
    let mut variables = BTreeMap::new();
    if matches!(step, Step::Checkout | Step::Collect) {
        return variables;
    }
    // Image users differ from the workspace's owner, and git refuses to work in a tree of someone else.
    let trust = [("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "safe.directory"), ("GIT_CONFIG_VALUE_0", "*")];
    if !assignment.environment.variables.contains_key(trust[0].0) {
        variables.extend(trust.map(|(name, value)| (name.to_owned(), Secret::new(value))));
    }
    let public = |(name, value): (&String, &String)| (name.clone(), Secret::new(value.as_str()));
    variables.extend(assignment.environment.variables.iter().map(public));
    if step == Step::Agent {
        variables.extend(assignment.agent.variables.iter().map(public));
    }
    variables.extend(secrets.iter().map(|(name, value)| (name.clone(), value.clone())));
    if step == Step::Agent {
        let own = [
            ("DEVFLEET_TASK", assignment.task.as_str()),
            ("DEVFLEET_PLAN", assignment.plan.as_str()),
            ("DEVFLEET_JOB", assignment.job.as_str()),
            ("DEVFLEET_ATTEMPT", assignment.attempt.as_str()),
        ];
        variables.extend(own.map(|(name, value)| (name.to_owned(), Secret::new(value))));
    }
    variables
}

/// Puts shell lines into one script that shows each before it runs it, as CI runners do.
fn shown(lines: &[String]) -> String {
    lines.iter().map(|line| format!("printf '%s\\n' {}\n{line}\n", quoted(&format!("$ {}", line.trim_end())))).collect()
}

/// Returns a text as one word of POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn checkout(assignment: &Assignment) -> String {
    let repository = &assignment.repository;
    let (commit, url) = (quoted(&repository.base_commit), quoted(&repository.url));
    // The CI's caches are no work of anybody, even where the project forgot to ignore them.
    let caches = assignment.environment.caches.iter().filter(|cache| !cache.path.starts_with('/'));
    // Their parents belong to the image's user; the engine would make them root's.
    let caches: String = caches
        .map(|cache| {
            let path = quoted(cache.path.trim_start_matches("./"));
            format!("printf '/%s\\n' {path} >> .git/info/exclude\nmkdir -p \"$(dirname {path})\" 2>/dev/null || true\n")
        })
        .collect();
    // Fetched rather than cloned: an image may bring files in the workspace, and those are no reason to fail. `safe.directory`
    // stands in a file, because git drops what its command line says when it looks into another repository.
    format!(
        r#"set -eu
command -v git >/dev/null || {{ echo 'there is no git in this image' >&2; exit 127; }}
HOME=$(mktemp -d) && export HOME
git config --global --add safe.directory '*'
git config --global init.defaultBranch {BRANCH}
git init -q .
git config user.name devfleet
git config user.email devfleet@localhost
git remote get-url origin >/dev/null 2>&1 || git remote add origin {url}
git fetch -q --no-tags /mirror '+refs/heads/*:refs/remotes/origin/*' || true
git cat-file -e {commit}'^{{commit}}' 2>/dev/null || git fetch -q --no-tags /mirror {commit}
git checkout -q -f -B {BRANCH} {commit}
mkdir -p .git/info
{caches}rm -rf "$HOME"
printf 'checked out %s\n' {commit}
"#
    )
}

fn collect(assignment: &Assignment, verified: bool) -> String {
    let base = quoted(&assignment.repository.base_commit);
    let save = if verified { String::new() } else { save(assignment) };
    // Everything but the bundle goes to standard error. HEAD counts, whatever branch the agent left it on.
    format!(
        r#"set -eu
exec 3>&1 1>&2
HOME=$(mktemp -d) && export HOME
git config --global --add safe.directory '*'
git config --global user.name devfleet
git config --global user.email devfleet@localhost
{save}if git diff --quiet {base} HEAD; then
    echo 'nothing was changed'
    exit {NOTHING_CHANGED}
fi
git update-ref refs/heads/{BRANCH} HEAD
git bundle create -q - {base}..refs/heads/{BRANCH} >&3
"#
    )
}

/// Returns the commit's title: the task's first line.
fn title(task: &str) -> String {
    let line = task.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("Changes of an agent");
    let line = line.trim_start_matches(['#', ' ']);
    let short: String = line.chars().filter(|character| !character.is_control()).take(TITLE_LIMIT).collect();
    if short.is_empty() { "Changes of an agent".into() } else { short }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Output};

    use super::*;
    use crate::assignments::tests::assignment;

    fn shell(dir: &Path, script: &str) -> Output {
        let output = Command::new("sh").args(["-e", "-c", script]).current_dir(dir).output();
        output.expect("a shell")
    }

    fn run(dir: &Path, script: &str) -> String {
        let output = shell(dir, script);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    struct Place {
        dir: tempfile::TempDir,
        assignment: Assignment,
    }

    impl Place {
        /// A mirror with two commits, and a workspace in which the first one is checked out.
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("dir");
            let make = "git init -q -b main source && cd source && git config user.name t && git config user.email t@t \
                        && echo 1 > file && git add -A && git commit -q -m first \
                        && echo 2 > file && git commit -q -a -m second && cd .. && git clone -q --bare source mirror \
                        && mkdir workspace && echo image > workspace/from-image";
            run(dir.path(), make);
            let mut assignment = assignment("a3f91c20", 1);
            assignment.task = "\n# Fix it's \"bug\"\nmore".into();
            assignment.repository.base_commit = run(&dir.path().join("mirror"), "git rev-parse main~1");
            let place = Self { dir, assignment };
            run(&place.workspace(), &place.script(Step::Checkout));
            place
        }

        fn workspace(&self) -> std::path::PathBuf {
            self.dir.path().join("workspace")
        }

        fn script(&self, step: Step) -> String {
            script(&self.assignment, step, false)
                .replace("/mirror", &self.dir.path().join("mirror").display().to_string())
        }

        fn collect(&self) -> Output {
            shell(&self.workspace(), &self.script(Step::Collect))
        }

        /// Takes a bundle into the mirror, as the host does, and returns the commit it brings.
        fn import(&self, bundle: &[u8]) -> String {
            let mirror = self.dir.path().join("mirror");
            std::fs::write(mirror.join("bundle"), bundle).expect("write");
            run(
                &mirror,
                "git bundle verify -q bundle && git fetch -q bundle refs/heads/devfleet && git rev-parse FETCH_HEAD",
            )
        }
    }

    #[test]
    fn checkout_brings_the_base_commit_on_a_branch_and_spares_other_files() {
        let place = Place::new();
        assert_eq!(run(&place.workspace(), "cat file from-image"), "1\nimage");
        assert_eq!(run(&place.workspace(), "git symbolic-ref HEAD"), "refs/heads/devfleet");
        assert_eq!(run(&place.workspace(), "git config user.name"), "devfleet");
        assert!(!place.workspace().join(".git/objects/info/alternates").exists());
    }

    #[test]
    fn collect_commits_what_is_left_and_brings_the_same_commit_when_repeated() {
        let place = Place::new();
        run(
            &place.workspace(),
            "rm from-image; echo 3 > file; echo new > added; printf '#!/bin/sh\\nexit 1\\n' > .git/hooks/pre-commit; chmod +x .git/hooks/pre-commit",
        );
        let first = place.collect();
        assert!(first.status.success(), "{first:?}");
        let commit = place.import(&first.stdout);
        let mirror = place.dir.path().join("mirror");
        assert_eq!(run(&mirror, &format!("git show {commit}:file {commit}:added")), "3\nnew");
        assert_eq!(run(&mirror, &format!("git log -1 --format=%s {commit}")), "Fix it's \"bug\"");
        assert_eq!(place.import(&place.collect().stdout), commit);
    }

    #[test]
    fn commits_that_the_agent_made_elsewhere_are_collected_too() {
        let place = Place::new();
        run(
            &place.workspace(),
            "rm from-image; git checkout -q -b own; echo 3 > file; git commit -q -a -m own; git checkout -q --detach",
        );
        let commit = place.import(&place.collect().stdout);
        assert_eq!(run(&place.dir.path().join("mirror"), &format!("git log -1 --format=%s {commit}")), "own");
    }

    #[test]
    fn what_set_up_tests_and_caches_leave_behind_is_not_taken_for_work() {
        let mut place = Place::new();
        let environment = &mut place.assignment.environment;
        environment.setup = vec!["mkdir -p 'built [x]'; echo 1 > 'built [x]/made'".into()];
        environment.verify = vec!["echo 1 > test-report".into()];
        run(&place.workspace(), "rm from-image");
        run(&place.workspace(), &place.script(Step::Setup));
        run(&place.workspace(), "echo work > added");
        run(&place.workspace(), &place.script(Step::Verify));
        let output = shell(&place.workspace(), &script(&place.assignment, Step::Collect, true));
        let commit = place.import(&output.stdout);
        assert_eq!(run(&place.dir.path().join("mirror"), &format!("git ls-tree --name-only {commit}")), "added\nfile");
    }

    #[test]
    fn an_unchanged_tree_is_told_by_the_status() {
        let place = Place::new();
        run(&place.workspace(), "rm from-image; git commit -q --allow-empty -m nothing");
        let output = place.collect();
        assert_eq!(output.status.code(), Some(NOTHING_CHANGED as i32), "{output:?}");
        assert!(output.stdout.is_empty());
    }

    #[test]
    fn a_destroyed_repository_is_an_error_and_brings_no_bundle() {
        let place = Place::new();
        run(&place.workspace(), "rm -rf .git");
        let output = place.collect();
        assert!(!output.status.success() && output.status.code() != Some(NOTHING_CHANGED as i32), "{output:?}");
        assert!(output.stdout.is_empty());
    }

    #[test]
    fn agent_and_verify_run_the_setup_lines_first_and_every_line_is_shown() {
        let mut assignment = assignment("a3f91c20", 1);
        assignment.environment.setup = vec!["export DEPENDENCY='it is there'".into()];
        assignment.environment.verify = vec!["echo \"$DEPENDENCY\"".into()];
        assignment.agent.command = "echo agent: $DEPENDENCY".into();
        let dir = tempfile::tempdir().expect("dir");
        let shown = "$ export DEPENDENCY='it is there'\n";
        assert_eq!(run(dir.path(), &script(&assignment, Step::Agent, false)), format!("{shown}agent: it is there"));
        run(dir.path(), "git init -q .");
        assert_eq!(
            run(dir.path(), &script(&assignment, Step::Verify, false)),
            format!("{shown}$ echo \"$DEPENDENCY\"\nit is there")
        );
    }

    #[test]
    fn a_step_sees_the_secrets_that_are_for_it_and_the_first_and_last_see_nothing() {
        let mut assignment = assignment("a3f91c20", 1);
        assignment.environment.variables.insert("CI".into(), "true".into());
        assignment.agent.variables.insert("MODEL".into(), "m".into());
        let secrets = BTreeMap::from([("TOKEN".to_owned(), Secret::new("hunter2-canary"))]);
        let names = |step| variables(&assignment, step, &secrets).into_keys().collect::<Vec<_>>();
        assert!(names(Step::Checkout).is_empty() && names(Step::Collect).is_empty());
        for step in [Step::Setup, Step::Verify] {
            assert!(names(step).contains(&"CI".to_owned()) && names(step).contains(&"TOKEN".to_owned()));
            assert!(!names(step).contains(&"MODEL".to_owned()), "the agent's own variables are its own");
        }
        let agent = variables(&assignment, Step::Agent, &secrets);
        assert_eq!(agent["TOKEN"].expose(), "hunter2-canary");
        assert_eq!(agent["DEVFLEET_TASK"].expose(), "fix it");
        assert!(agent.contains_key("CI") && agent.contains_key("MODEL"));
    }

    #[test]
    fn titles_are_one_short_line() {
        assert_eq!(title("## Fix the thing\nmore"), "Fix the thing");
        assert_eq!(title(" \n\n"), "Changes of an agent");
        assert_eq!(title(&"é".repeat(100)).chars().count(), TITLE_LIMIT);
    }
}
