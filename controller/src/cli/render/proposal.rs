//! A proposal, for the people who approve it.

use std::collections::HashMap;

use devfleet_proto::v1;

use super::super::harmless::one_line;
use super::{commit, fields, heading, indented, plain, short, table};

/// Shows everything that an approval covers.
pub fn proposal(proposal: &v1::Proposal) -> String {
    let mut out = fields([
        ("job", proposal.job.clone()),
        ("digest", proposal.digest.clone()),
        ("agent", proposal.agent.clone()),
        ("command", proposal.agent_command.clone()),
        ("base commit", commit(&proposal.base_commit)),
        ("CI job", proposal.ci_job.clone()),
        ("confidence", percent(proposal.confidence)),
        ("recipe", proposal.recipe.as_ref().map(|recipe| recipe.digest.clone()).unwrap_or_default()),
        ("notes", proposal.notes.join("\n")),
    ]);
    if let Some(environment) = &proposal.environment {
        out.push_str(&heading("Environment"));
        out.push_str(&indented(&self::environment(environment)));
    }
    let declared = declared(proposal);
    if !declared.is_empty() {
        out.push_str(&heading("Beside the environment"));
        out.push_str(&indented(&declared));
    }
    out.push_str(&heading("Plan"));
    out.push_str(&indented(if proposal.plan.trim().is_empty() { "(none)" } else { &proposal.plan }));
    let id = short(&proposal.job);
    out.push_str(&format!(
        "\nWhere each fact comes from: devfleet env show {id} --report\nTo run it by hand: devfleet env show {id} \
         --dockerfile, --compose\n"
    ));
    out
}

fn environment(environment: &v1::Environment) -> String {
    let services = environment.services.iter().map(|service| match service.aliases.as_slice() {
        [] => service.image.clone(),
        aliases => format!("{} as {}", service.image, aliases.join(", ")),
    });
    let caches = environment.caches.iter().map(|cache| cache.path.clone());
    fields([
        ("image", environment.image.clone()),
        ("user", environment.user.clone()),
        ("platform", environment.platform.clone()),
        ("pulled", environment.pull_policy.clone()),
        ("services", lines(services)),
        ("variables", variables(&environment.variables)),
        ("caches", lines(caches)),
        ("setup", environment.setup.join("\n")),
        ("verify", environment.verify.join("\n")),
    ])
}

/// What an approval covers beside environment and plan.
fn declared(proposal: &v1::Proposal) -> String {
    let variables =
        proposal.ci_variables.iter().map(|variable| format!("{} for {}", variable.name, variable.steps.join(", ")));
    let egress = proposal.egress.as_ref().map(|list| match list.items.as_slice() {
        [] => "nothing (not enforced yet)".to_owned(),
        hosts => format!("{} (not enforced yet)", hosts.join(", ")),
    });
    let budget = match proposal.budget_tokens {
        0 => String::new(),
        tokens => format!("{tokens} tokens (not enforced yet)"),
    };
    let components = proposal.components.iter().map(|component| {
        let paths = component.paths.join(", ");
        if component.description.is_empty() {
            format!("{}: {paths}", component.name)
        } else {
            format!("{}: {paths} ({})", component.name, component.description)
        }
    });
    fields([
        ("CI variables", lines(variables)),
        ("egress", egress.unwrap_or_default()),
        ("budget", budget),
        ("components", lines(components)),
    ])
}

/// Shows what differs between the proposal that was approved and the one that stands.
pub fn diff(diff: &v1::ProposalDiff) -> String {
    let mut out =
        fields([("job", diff.job.clone()), ("approved", diff.former_digest.clone()), ("now", diff.digest.clone())]);
    for change in &diff.facts {
        out.push_str(&heading(&change.fact));
        let side = |mark: &str, text: &str| text.lines().map(|line| format!("{mark}{line}\n")).collect::<String>();
        out.push_str(&indented(&format!("{}{}", side("- ", &change.former), side("+ ", &change.now))));
    }
    if !diff.dockerfile.is_empty() {
        out.push_str(&heading("Dockerfile"));
        out.push_str(&indented(&diff.dockerfile));
    }
    out.push_str(&format!("\nTo approve what stands now: devfleet approve {}\n", short(&diff.job)));
    out
}

fn lines(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join("\n")
}

fn variables(variables: &HashMap<String, String>) -> String {
    let mut texts: Vec<_> = variables.iter().map(|(name, value)| format!("{name}={}", one_line(value, 80))).collect();
    texts.sort();
    texts.join("\n")
}

fn percent(confidence: f64) -> String {
    format!("{:.0} %", confidence * 100.0)
}

/// Shows where each derived fact comes from, what was dropped, and what else could have been chosen.
pub fn report(proposal: &v1::Proposal) -> String {
    let rows =
        proposal.report.iter().map(|line| [plain(&line.fact), plain(one_line(&line.value, 60)), plain(origin(line))]);
    let mut out = fields([("CI job", proposal.ci_job.clone()), ("confidence", percent(proposal.confidence))]);
    out.push('\n');
    out.push_str(&table(["FACT", "VALUE", "FROM"], rows, "Nothing was derived."));
    if !proposal.dropped.is_empty() {
        out.push_str(&heading("Left out"));
        let rows = proposal.dropped.iter().map(|dropped| [plain(one_line(&dropped.line, 60)), plain(&dropped.reason)]);
        out.push_str(&table(["LINE", "WHY"], rows, ""));
    }
    if !proposal.alternatives.is_empty() {
        out.push_str(&heading("Other CI jobs that were considered"));
        let rows = proposal
            .alternatives
            .iter()
            .map(|other| [plain(&other.job), plain(&other.image), plain(other.score.to_string())]);
        out.push_str(&table(["JOB", "IMAGE", "SCORE"], rows, ""));
    }
    if !proposal.notes.is_empty() {
        out.push_str(&heading("Notes"));
        out.push_str(&indented(&proposal.notes.join("\n")));
    }
    out
}

fn origin(line: &v1::ReportLine) -> String {
    [&line.file, &line.job, &line.keyword]
        .into_iter()
        .filter(|part| !part.is_empty())
        .cloned()
        .collect::<Vec<_>>()
        .join(" : ")
}

#[cfg(test)]
mod tests {
    use super::super::super::output::paint;
    use super::*;

    fn sample() -> v1::Proposal {
        let service = v1::Service {
            name: "redis".into(),
            image: "redis:7".into(),
            aliases: vec!["redis".into()],
            ..Default::default()
        };
        v1::Proposal {
            job: "0b5e1d2c-1111-4222-8333-444444444444".into(),
            digest: "sha256:abc".into(),
            plan: "1. read\n2. fix".into(),
            environment: Some(v1::Environment {
                image: "python:3.11".into(),
                services: vec![service],
                variables: HashMap::from([("B".into(), "2".into()), ("A".into(), "1".into())]),
                setup: vec!["pip install .".into()],
                verify: vec!["pytest".into()],
                ..Default::default()
            }),
            report: vec![v1::ReportLine {
                fact: "image".into(),
                value: "python:3.11".into(),
                file: ".gitlab-ci.yml".into(),
                job: "test".into(),
                keyword: "image".into(),
            }],
            dropped: vec![v1::Dropped { line: "git push".into(), reason: "publishing is devfleet's".into() }],
            confidence: 0.93,
            base_commit: "c0ffee".into(),
            agent: "fix".into(),
            agent_command: "sh fix.sh\nexit".into(),
            ci_job: "test".into(),
            ..v1::Proposal::default()
        }
    }

    #[test]
    fn a_proposal_shows_what_is_approved() {
        let expected = "\
job:          0b5e1d2c-1111-4222-8333-444444444444
digest:       sha256:abc
agent:        fix
command:      sh fix.sh
              exit
base commit:  c0ffee
CI job:       test
confidence:   93 %

Environment
  image:        python:3.11
  services:     redis:7 as redis
  variables:    A=1
                B=2
  setup:        pip install .
  verify:       pytest

Plan
  1. read
  2. fix

Where each fact comes from: devfleet env show 0b5e1d2c --report
To run it by hand: devfleet env show 0b5e1d2c --dockerfile, --compose
";
        assert_eq!(paint(&proposal(&sample()), false), expected);
    }

    #[test]
    fn what_is_declared_beside_the_environment_is_shown_too() {
        let variable = v1::CiVariable { name: "TOKEN".into(), steps: vec!["setup".into(), "verify".into()] };
        let component = v1::Component { name: "api".into(), paths: vec!["api/**".into()], description: String::new() };
        let proposal = v1::Proposal {
            ci_variables: vec![variable],
            egress: Some(v1::StringList { items: vec!["pypi.org".into()] }),
            budget_tokens: 9_000,
            components: vec![component],
            ..sample()
        };
        let text = paint(&super::proposal(&proposal), false);
        let expected = "Beside the environment
  CI variables: TOKEN for setup, verify
  egress:       pypi.org (not enforced yet)
  budget:       9000 tokens (not enforced yet)
  components:   api: api/**
";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn a_difference_shows_both_sides_of_each_fact() {
        let change = v1::FactChange { fact: "image".into(), former: "ruby:3.1".into(), now: "ruby:3.2".into() };
        let diff = v1::ProposalDiff {
            job: "0b5e1d2c-1111-4222-8333-444444444444".into(),
            former_digest: "sha256:a".into(),
            digest: "sha256:b".into(),
            facts: vec![change],
            dockerfile: "- FROM ruby:3.1\n+ FROM ruby:3.2\n  USER 0\n".into(),
        };
        let expected = "\
job:          0b5e1d2c-1111-4222-8333-444444444444
approved:     sha256:a
now:          sha256:b

image
  - ruby:3.1
  + ruby:3.2

Dockerfile
  - FROM ruby:3.1
  + FROM ruby:3.2
    USER 0

To approve what stands now: devfleet approve 0b5e1d2c
";
        assert_eq!(paint(&super::diff(&diff), false), expected);
    }

    #[test]
    fn a_report_says_where_facts_come_from_and_what_was_left_out() {
        let expected = "\
CI job:       test
confidence:   93 %

FACT   VALUE        FROM
image  python:3.11  .gitlab-ci.yml : test : image

Left out
LINE      WHY
git push  publishing is devfleet's
";
        assert_eq!(paint(&report(&sample()), false), expected);
    }
}
