//! The CI variables that a GitLab project keeps outside of its files.
//!
//! What GitLab gives to protected branches only is not taken: no branch that a job works on is one. Nor is what it hands
//! over as a file, or to one deployment environment alone.

use std::collections::BTreeMap;

use devfleet_shared::secret::Secret;

use super::super::ForgeError;
use super::answers::Variable;
use super::{GitLab, MAX_PAGES, parse};

const MAINTAINS: &str = "the scope api, and the role Maintainer in the project, to read CI variables";

/// Reads the variables of these names. Nothing is asked when there are none.
pub(super) async fn read(
    forge: &GitLab,
    names: &[String],
) -> Result<BTreeMap<String, Result<Secret, String>>, ForgeError> {
    let mut found = BTreeMap::new();
    if names.is_empty() {
        return Ok(found);
    }
    let mut call = forge.call("read the project's CI variables", &["variables"], &[("per_page", "100")]);
    call.needs = MAINTAINS;
    for _ in 0..MAX_PAGES {
        let answer = forge.client.send(&call).await?;
        let variables: Vec<Variable> = parse(&call, &answer)?;
        for variable in variables {
            let Some(name) = variable.key.clone().filter(|key| names.contains(key)) else { continue };
            let value = usable(variable);
            // One name may stand for several scopes; the one for all of them counts.
            if value.is_ok() || !found.contains_key(&name) {
                found.insert(name, value);
            }
        }
        match answer.next_page().and_then(|address| forge.client.own_url(address)) {
            Some(url) => call.url = url,
            None => break,
        }
    }
    Ok(found)
}

/// Returns a variable's value, or why a job does not get it.
fn usable(variable: Variable) -> Result<Secret, String> {
    if variable.environment_scope.as_deref().is_some_and(|scope| scope != "*") {
        return Err("it is for one deployment environment only".to_owned());
    }
    if variable.protected {
        return Err("it is protected, and a job's branch is not; GitLab would not give it to one either".to_owned());
    }
    if variable.variable_type.as_deref() == Some("file") {
        return Err("it is of the type file; only plain variables can be handed over".to_owned());
    }
    match variable.value.filter(|value| !value.is_empty()) {
        Some(value) if value.contains('\0') => Err("its value is no text".to_owned()),
        Some(value) => Ok(Secret::new(value)),
        None => Err("it is empty, or GitLab does not show its value".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl Fn(&mut Variable), expected: Result<&str, &str>) {
        let mut variable = Variable { key: Some("K".into()), value: Some("v".into()), ..Variable::default() };
        change(&mut variable);
        match (usable(variable), expected) {
            (Ok(secret), Ok(value)) => assert_eq!(secret.expose(), value),
            (Err(why), Err(needle)) => assert!(why.contains(needle), "{why}"),
            (found, expected) => panic!("{:?} instead of {expected:?}", found.map(|_| "a value")),
        }
    }

    #[test]
    fn only_what_any_branch_would_get_is_taken() {
        check(|_| {}, Ok("v"));
        check(|variable| variable.environment_scope = Some("*".into()), Ok("v"));
        check(|variable| variable.environment_scope = Some("production".into()), Err("deployment environment"));
        check(|variable| variable.protected = true, Err("protected"));
        check(|variable| variable.variable_type = Some("file".into()), Err("type file"));
        check(|variable| variable.variable_type = Some("env_var".into()), Ok("v"));
        check(|variable| variable.value = None, Err("does not show"));
        check(|variable| variable.value = Some(String::new()), Err("empty"));
    }
}
