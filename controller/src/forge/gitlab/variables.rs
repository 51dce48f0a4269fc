//! The CI variables that GitLab keeps outside of a project's files: the project's own, those of the groups around it, the
//! nearest first, and the instance's. The first that a job could get counts, as in GitLab.
//!
//! What GitLab gives to protected branches only is not taken: no branch that a job works on is one. Nor is what it hands
//! over as a file, or to one deployment environment alone. Further levels are asked only for what the nearer ones lack.

use std::collections::BTreeMap;

use devfleet_shared::secret::Secret;
use reqwest::{Method, StatusCode, Url};

use super::super::ForgeError;
use super::answers::{Namespace, Variable};
use super::client::{Call, Failure};
use super::{GitLab, MAX_PAGES, parse};

const MAINTAINS: &str = "the scope api, and the role Maintainer in the project, to read CI variables";
const PAGE: [(&str, &str); 1] = [("per_page", "100")];

type Values = BTreeMap<String, Result<Secret, String>>;

/// Reads the variables of these names. Nothing is asked when there are none.
pub(super) async fn read(forge: &GitLab, names: &[String]) -> Result<Values, ForgeError> {
    let mut found = Values::new();
    if names.is_empty() {
        return Ok(found);
    }
    let mut call = forge.call("read the project's CI variables", &["variables"], &PAGE);
    call.needs = MAINTAINS;
    take(&mut found, names, list(forge, call).await?);
    if complete(&found, names) {
        return Ok(found);
    }
    let mut unseen = Vec::new();
    for level in levels(forge, forge.project().await?.namespace.unwrap_or_default()) {
        if complete(&found, names) {
            break;
        }
        let action = format!("read the CI variables of {}", level.name);
        let call = Call { action, needs: level.needs, method: Method::GET, url: level.url, body: None };
        match list(forge, call).await {
            Ok(variables) => take(&mut found, names, variables),
            Err(Failure { status: Some(StatusCode::FORBIDDEN | StatusCode::NOT_FOUND), .. }) => {
                unseen.push(format!("{} (that takes {})", level.name, level.needs));
            }
            Err(failure) => return Err(failure.error),
        }
    }
    if !unseen.is_empty() {
        let why = format!("the project has none, and the token may not read those of {}", unseen.join(", nor of "));
        for name in names {
            found.entry(name.clone()).or_insert_with(|| Err(why.clone()));
        }
    }
    Ok(found)
}

/// Where variables stand beside the project.
struct Level {
    name: String,
    url: Url,
    needs: &'static str,
}

/// The groups around a project, the nearest first, and the instance.
fn levels(forge: &GitLab, namespace: Namespace) -> Vec<Level> {
    let mut levels = Vec::new();
    let path = namespace.full_path.filter(|_| namespace.kind.as_deref() == Some("group")).unwrap_or_default();
    let mut group = Some(path.as_str()).filter(|path| !path.is_empty());
    while let Some(path) = group {
        let url = forge.client.url(&["groups", path, "variables"], &PAGE);
        levels.push(Level { name: format!("group {path}"), url, needs: "the role Owner in the group" });
        group = path.rsplit_once('/').map(|(parent, _)| parent);
    }
    let url = forge.client.url(&["admin", "ci", "variables"], &PAGE);
    levels.push(Level { name: "the instance".to_owned(), url, needs: "an administrator" });
    levels
}

/// Reads all pages.
async fn list(forge: &GitLab, mut call: Call<'_>) -> Result<Vec<Variable>, Failure> {
    let mut all = Vec::new();
    for _ in 0..MAX_PAGES {
        let answer = forge.client.send(&call).await?;
        let page: Vec<Variable> = parse(&call, &answer).map_err(|error| Failure { status: None, error })?;
        all.extend(page);
        match answer.next_page().and_then(|address| forge.client.own_url(address)) {
            Some(url) => call.url = url,
            None => break,
        }
    }
    Ok(all)
}

/// Takes what is wanted of one level, where no nearer one has a value that can be used.
fn take(found: &mut Values, names: &[String], variables: Vec<Variable>) {
    let nearer = settled(found);
    for variable in variables {
        let Some(name) = variable.key.clone().filter(|key| names.contains(key) && !nearer.contains(key)) else {
            continue;
        };
        let value = usable(variable);
        // One name may stand for several scopes; the one for all of them counts.
        if value.is_ok() || !found.contains_key(&name) {
            found.insert(name, value);
        }
    }
}

fn settled(found: &Values) -> Vec<String> {
    found.iter().filter(|(_, value)| value.is_ok()).map(|(name, _)| name.clone()).collect()
}

fn complete(found: &Values, names: &[String]) -> bool {
    names.iter().all(|name| found.get(name).is_some_and(Result::is_ok))
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
