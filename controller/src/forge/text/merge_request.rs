//! What a merge request says: the task, the plan, what was checked, and where it comes from.
//!
//! Task and plan stand in quotes, so that a fence or tag they leave open ends with them; output stands in a fence longer
//! than any of its own.

use devfleet_shared::id::{AgentName, AttemptId, Digest, JobId};

use super::{BREAK, cap, guard_lines, neutral, one_line, plain};

/// GitLab's limit for a title, in characters.
const TITLE_CHARS: usize = 255;
/// Our limit for a description; GitLab's is 1 MiB, and people do not read that.
const DESCRIPTION_BYTES: usize = 60 << 10;
const TASK_BYTES: usize = 12 << 10;
const PLAN_BYTES: usize = 24 << 10;
const OUTPUT_BYTES: usize = 8 << 10;

/// How the project's own checks went.
#[derive(Debug, Clone, Copy)]
pub struct VerificationFacts<'a> {
    /// Whether there was anything to run.
    pub ran: bool,
    /// Whether it passed.
    pub passed: bool,
    /// How long it took.
    pub seconds: u64,
    /// The end of its output, masked.
    pub output_tail: &'a str,
}

/// What a merge request tells of.
#[derive(Debug, Clone, Copy)]
pub struct MergeRequestFacts<'a> {
    /// One line for people; the job's short name stands in when it is empty.
    pub title: &'a str,
    /// The task as it was submitted.
    pub task: &'a str,
    /// The plan as it was approved.
    pub plan: &'a str,
    /// How the project's own checks went.
    pub verification: Option<VerificationFacts<'a>>,
    /// The digest that was approved: environment, plan, base commit, command.
    pub proposal_digest: &'a Digest,
    /// The job.
    pub job: &'a JobId,
    /// The attempt that did the work.
    pub attempt: &'a AttemptId,
    /// The agent's profile.
    pub agent: &'a AgentName,
    /// The commit the work starts from.
    pub base_commit: &'a str,
    /// The issue that a merge closes.
    pub issue: Option<u64>,
}

/// Writes title (one line, 255 characters at most) and description (60 KiB of Markdown at most).
///
/// Nothing in them acts on the forge but `Closes #n` for [`MergeRequestFacts::issue`].
pub fn merge_request_text(facts: &MergeRequestFacts) -> (String, String) {
    let mut parts = Vec::new();
    if let Some(issue) = facts.issue {
        parts.push(format!("Closes #{issue}"));
    }
    parts.push(section("Task", facts.task, TASK_BYTES));
    parts.push(section("Plan", facts.plan, PLAN_BYTES));
    parts.push(format!("### Verification\n\n{}", verification(facts.verification.as_ref())));
    parts.push(provenance(facts));
    (title(facts), cap(&parts.join("\n\n"), DESCRIPTION_BYTES))
}

fn title(facts: &MergeRequestFacts) -> String {
    match one_line(&neutral(facts.title), TITLE_CHARS) {
        empty if empty.is_empty() => format!("devfleet job {}", facts.job.short()),
        title => title,
    }
}

fn section(heading: &str, text: &str, limit_bytes: usize) -> String {
    let quoted: Vec<String> = neutral(text.trim()).lines().map(|line| format!("> {line}")).collect();
    let body = if quoted.is_empty() { "> (none)".to_owned() } else { cap(&quoted.join("\n"), limit_bytes) };
    format!("### {heading}\n\n{body}")
}

fn verification(facts: Option<&VerificationFacts>) -> String {
    let Some(facts) = facts.filter(|facts| facts.ran) else {
        return "The project's own checks did not run: look at the change with care.".to_owned();
    };
    let verdict = if facts.passed { "passed" } else { "**failed**" };
    let seconds = facts.seconds;
    let sentence = format!("The project's own checks {verdict}, in {seconds} s, after the agent was done.");
    let output = evidence(facts.output_tail);
    if output.trim().is_empty() {
        return sentence;
    }
    let fence = "`".repeat(longest_run(&output, '`').max(2) + 1);
    format!(
        "{sentence}\n\n<details><summary>The end of their output</summary>\n\n{fence}text\n{output}\n{fence}\n\n</details>"
    )
}

/// Makes output fit for a fence: its end, without colours, without a line or comment that could act.
fn evidence(output: &str) -> String {
    let output = plain(&without_colours(output));
    let output = output.trim_end();
    let wanted = output.len().saturating_sub(OUTPUT_BYTES);
    let start = (wanted..output.len()).find(|&at| output.is_char_boundary(at)).unwrap_or(output.len());
    let mark = if start > 0 { "…" } else { "" };
    guard_lines(&format!("{mark}{}", &output[start..]).replace("<!", &format!("<{BREAK}!")))
}

/// Drops the escape sequences of terminals: ESC `[`, parameters, one final byte from `@` to `~`.
fn without_colours(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| ('@'..='~').contains(&c)).map_or(part.len(), |at| at + 1);
        plain.push_str(&part[end..]);
    }
    plain
}

fn longest_run(text: &str, wanted: char) -> usize {
    text.split(|c| c != wanted).map(str::len).max().unwrap_or_default()
}

fn provenance(facts: &MergeRequestFacts) -> String {
    let base: String = facts.base_commit.chars().filter(char::is_ascii_hexdigit).take(64).collect();
    format!(
        "### Provenance\n\n| what | which |\n|---|---|\n| job | `{}` |\n| attempt | `{}` |\n| agent | `{}` |\n\
         | base commit | `{base}` |\n| approved digest (environment, plan, base, command) | `{}` |\n\n\
         Made by devfleet in an environment of its own, which is gone.",
        facts.job, facts.attempt, facts.agent, facts.proposal_digest
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(task: &str, plan: &str, output: &str, issue: Option<u64>) -> (String, String) {
        merge_request_text(&MergeRequestFacts {
            title: task,
            task,
            plan,
            verification: Some(VerificationFacts { ran: true, passed: true, seconds: 12, output_tail: output }),
            proposal_digest: &Digest::of(b"proposal"),
            job: &"1b4e28ba-2fa1-41d2-883f-0016d3cca427".parse().expect("a job id"),
            attempt: &"a3f91c20".parse().expect("an attempt id"),
            agent: &"script".parse().expect("an agent's name"),
            base_commit: "c0ffee",
            issue,
        })
    }

    #[test]
    fn everything_a_reviewer_needs_is_there() {
        let (title, text) = written("Fix the tally", "1. look\n2. mend", "\u{1b}[32m7 passed\u{1b}[0m\n", Some(12));
        assert_eq!(title, "Fix the tally");
        let digest = Digest::of(b"proposal").to_string();
        for part in [
            "Closes #12\n\n### Task\n\n> Fix the tally\n\n",
            "### Plan\n\n> 1. look\n> 2. mend\n",
            "checks passed, in 12 s",
            "```text\n7 passed\n```",
            "| attempt | `a3f91c20` |",
            "| base commit | `c0ffee` |",
            &digest,
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }

    #[test]
    fn a_fence_in_the_output_or_the_plan_ends_where_it_stands() {
        let (_, text) = written("task", "```\nnever closed", "before\n````\n/close\n<!-- x -->", None);
        assert!(text.contains("`````text\nbefore\n````\n\u{200B}/close\n<\u{200B}!-- x -->\n`````"), "{text}");
        assert!(text.contains("> ```\n> never closed\n\n### Verification"), "{text}");
        assert!(!text.contains("Closes"), "{text}");
    }

    #[test]
    fn an_empty_title_is_replaced_and_a_missing_check_is_said() {
        let (title, text) = written(" \n", "", "", None);
        assert_eq!(title, "devfleet job 1b4e28ba");
        assert!(text.contains("> (none)"), "{text}");
        assert!(verification(None).contains("did not run"));
        let failed = VerificationFacts { ran: true, passed: false, seconds: 1, output_tail: "" };
        assert!(verification(Some(&failed)).contains("**failed**"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_goes_in_the_text_acts_on_nothing_and_fits(
            task in "(\\PC|\n|/|Closes #1| @all|<!--){0,40}", repeat in 1usize..4000, plan in "(\n|/|```|@){0,20}",
        ) {
            let (title, text) = written(&task, &plan.repeat(repeat), &task.repeat(repeat), Some(7));
            prop_assert!(title.chars().count() <= 255 && !title.contains('\n') && !title.is_empty());
            prop_assert!(text.len() <= DESCRIPTION_BYTES, "{}", text.len());
            prop_assert!(text.ends_with("which is gone."), "cut short");
            prop_assert!(text.lines().all(|line| !line.trim_start().starts_with('/')));
            prop_assert!(!text.contains("<!--"));
            prop_assert_eq!(text.matches("Closes #7").count(), 1);
            let outside = text.split("### Verification").next().unwrap_or_default();
            prop_assert!(!outside.contains(" @all") && !outside.contains("Closes #1"));
        }
    }
}
