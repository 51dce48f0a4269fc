//! What two proposals differ in, for the people who are asked again.

use std::collections::BTreeMap;

use devfleet_shared::environment::PullPolicy;

use crate::store::records::Proposal;

/// Above this many pairs of lines, the whole text counts as replaced.
const MAX_PAIRS: usize = 1_000_000;

/// One fact that differs. An empty side: there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What is known: `image`, `service db`, `variable CI`.
    pub fact: String,
    /// What was approved.
    pub former: String,
    /// What is proposed now.
    pub now: String,
}

/// Lists what differs, by fact.
pub fn changes(former: &Proposal, now: &Proposal) -> Vec<Change> {
    let (before, after) = (facts(former), facts(now));
    let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let value = |facts: &BTreeMap<String, String>, name: &String| facts.get(name).cloned().unwrap_or_default();
    names
        .into_iter()
        .map(|name| Change { fact: name.clone(), former: value(&before, name), now: value(&after, name) })
        .filter(|change| change.former != change.now)
        .collect()
}

/// Everything that the digest covers, as texts.
fn facts(proposal: &Proposal) -> BTreeMap<String, String> {
    let environment = &proposal.environment;
    let joined = |items: &Option<Vec<String>>| items.as_ref().map(|items| format!("{items:?}")).unwrap_or_default();
    let mut facts = BTreeMap::from([
        ("agent".to_owned(), format!("{}: {}", proposal.agent.name, proposal.agent.command)),
        ("agent variables".to_owned(), format!("{:?}, secret: {:?}", proposal.agent.variables, proposal.agent.secrets)),
        ("base commit".to_owned(), format!("{} on {}", proposal.base.commit, proposal.base.branch)),
        ("entrypoint".to_owned(), joined(&environment.entrypoint)),
        ("image".to_owned(), environment.image.clone()),
        ("limits".to_owned(), format!("{:?}", proposal.limits)),
        ("plan".to_owned(), proposal.plan.clone()),
        ("pull policy".to_owned(), environment.pull.map(PullPolicy::name).unwrap_or_default().to_owned()),
        ("platform".to_owned(), environment.platform.clone().unwrap_or_default()),
        ("recipe".to_owned(), proposal.recipe.digest.to_string()),
        ("repository".to_owned(), proposal.repository.clone()),
        ("setup".to_owned(), environment.setup.join("\n")),
        ("task".to_owned(), proposal.task.clone()),
        ("user".to_owned(), environment.user.clone().unwrap_or_default()),
        ("verify".to_owned(), environment.verify.join("\n")),
    ]);
    for service in &environment.services {
        let mut text = format!("{} as {}", service.image, service.aliases.join(", "));
        for (name, value) in [("platform", service.platform.as_deref()), ("pull", service.pull.map(PullPolicy::name))] {
            if let Some(value) = value {
                text.push_str(&format!(", {name} {value}"));
            }
        }
        for (name, words) in [("entrypoint", &service.entrypoint), ("command", &service.command)] {
            if words.is_some() {
                text.push_str(&format!(", {name} {}", joined(words)));
            }
        }
        let own = service.variables.iter().filter(|(name, value)| environment.variables.get(*name) != Some(*value));
        own.for_each(|(name, value)| text.push_str(&format!(", {name}={value}")));
        facts.insert(format!("service {}", service.name), text);
    }
    for (name, value) in &environment.variables {
        facts.insert(format!("variable {name}"), value.clone());
    }
    for cache in &environment.caches {
        facts.insert(format!("cache {}", cache.path), format!("{} {}", cache.key, cache.lock_files.join(", ")));
    }
    for (name, steps) in &proposal.ci_variables {
        let steps: Vec<&str> = steps.iter().map(|step| step.name()).collect();
        facts.insert(format!("CI variable {name}"), format!("for {}", steps.join(", ")));
    }
    if let Some(egress) = &proposal.declared.egress {
        facts.insert("egress".to_owned(), egress.join(", "));
    }
    if let Some(tokens) = proposal.declared.budget_tokens {
        facts.insert("budget".to_owned(), format!("{tokens} tokens"));
    }
    for (name, component) in &proposal.declared.components {
        facts.insert(format!("component {name}"), format!("{}: {}", component.paths.join(", "), component.description));
    }
    facts
}

/// Compares two texts by line: `-` gone, `+` new, two spaces for what stays.
pub fn lines(former: &str, now: &str) -> String {
    let (before, after): (Vec<&str>, Vec<&str>) = (former.lines().collect(), now.lines().collect());
    if before == after {
        return String::new();
    }
    let mut text = String::new();
    let mut push = |mark: &str, line: &str| text.push_str(&format!("{mark}{line}\n"));
    if before.len().saturating_mul(after.len()) > MAX_PAIRS {
        before.iter().for_each(|line| push("- ", line));
        after.iter().for_each(|line| push("+ ", line));
        return text;
    }
    let common = common_lengths(&before, &after);
    let (mut left, mut right) = (0, 0);
    while left < before.len() || right < after.len() {
        if left < before.len() && right < after.len() && before[left] == after[right] {
            push("  ", before[left]);
            (left, right) = (left + 1, right + 1);
        } else if left < before.len() && (right == after.len() || common[left + 1][right] >= common[left][right + 1]) {
            push("- ", before[left]);
            left += 1;
        } else {
            push("+ ", after[right]);
            right += 1;
        }
    }
    text
}

/// For each pair of positions, how many lines the two rests have in common.
fn common_lengths(before: &[&str], after: &[&str]) -> Vec<Vec<usize>> {
    let mut common = vec![vec![0; after.len() + 1]; before.len() + 1];
    for left in (0..before.len()).rev() {
        for right in (0..after.len()).rev() {
            common[left][right] = if before[left] == after[right] {
                common[left + 1][right + 1] + 1
            } else {
                common[left + 1][right].max(common[left][right + 1])
            };
        }
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_compared_by_line() {
        assert_eq!(lines("a\nb\nc\n", "a\nb\nc\n"), "");
        assert_eq!(lines("a\nb\nc\n", "a\nx\nc\nd\n"), "  a\n- b\n+ x\n  c\n+ d\n");
        assert_eq!(lines("", "a\n"), "+ a\n");
        assert_eq!(lines("a\nb\n", "b\n"), "- a\n  b\n");
        let long = "x\n".repeat(1_100);
        assert!(lines(&long, &format!("{long}y\n")).starts_with("- x\n"), "too long to compare: all is replaced");
    }
}
