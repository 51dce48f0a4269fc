//! CI variables that GitLab keeps at its several levels: which one counts, and what a token that may not see a level is told.

use std::collections::BTreeMap;
use std::time::Duration;

use devfleet_controller::forge::gitlab::{GitLab, GitLabSettings};
use devfleet_controller::forge::{Forge as _, ForgeError};
use serde_json::json;

use super::grounds::quick;
use crate::support::gitlab::{Fault, GitLabStandIn, Route, Scope, Standing};

const PROJECT: &str = "company/web/shop";

/// What a token of this standing gets: values, or why not.
async fn values(
    stand_in: &GitLabStandIn,
    standing: Standing,
    names: &[&str],
) -> Result<BTreeMap<String, Result<String, String>>, ForgeError> {
    let settings = GitLabSettings {
        url: stand_in.url(),
        project: PROJECT.to_owned(),
        token: Some(devfleet_shared::secret::Secret::new(stand_in.token_of(standing, Scope::Api))),
        ci_config_path: ".gitlab-ci.yml".to_owned(),
    };
    let forge = GitLab::with_pace(settings, quick(Duration::from_secs(20))).expect("the address is one");
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let found = forge.ci_variables(&names).await?;
    Ok(found.into_iter().map(|(name, value)| (name, value.map(|secret| secret.expose().to_owned()))).collect())
}

fn outer_calls(stand_in: &GitLabStandIn) -> (usize, usize) {
    (stand_in.count(Route::GroupVariables), stand_in.count(Route::InstanceVariables))
}

#[tokio::test]
async fn the_project_beats_its_groups_the_nearest_first_and_they_beat_the_instance() {
    let stand_in = GitLabStandIn::start().await;
    let project = stand_in.create_project(PROJECT, &[("a", "a\n")]);
    let plain = json!({});
    for (group, names) in [
        (None, &["INSTANCE", "GROUP", "NEAR", "OWN", "KEPT"][..]),
        (Some("company"), &["GROUP", "NEAR", "OWN"]),
        (Some("company/web"), &["NEAR", "OWN"]),
        (Some("company/other"), &["INSTANCE"]),
    ] {
        for name in names {
            stand_in.set_outer_variable(group, name, &format!("of {}", group.unwrap_or("all")), &plain);
        }
    }
    stand_in.set_variable(&project, "OWN", "of the project", &plain);
    // What a job's branch would not get, GitLab passes over: the next level counts.
    stand_in.set_variable(&project, "KEPT", "kept", &json!({"protected": true}));
    stand_in.set_outer_variable(Some("company"), "KEPT", "for production", &json!({"environment_scope": "production"}));
    let names = ["INSTANCE", "GROUP", "NEAR", "OWN", "KEPT", "NOWHERE"];
    let found = values(&stand_in, Standing::Administrator, &names).await.expect("an answer");
    let expected = [
        ("INSTANCE", "of all"),
        ("GROUP", "of company"),
        ("NEAR", "of company/web"),
        ("OWN", "of the project"),
        ("KEPT", "of all"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), Ok(value.to_owned())));
    assert_eq!(found, BTreeMap::from(expected), "and NOWHERE is nowhere");
}

#[tokio::test]
async fn further_levels_are_asked_only_for_what_the_nearer_ones_lack() {
    let stand_in = GitLabStandIn::start().await;
    let project = stand_in.create_project(PROJECT, &[("a", "a\n")]);
    stand_in.set_variable(&project, "OWN", "1", &json!({}));
    stand_in.set_outer_variable(Some("company/web"), "NEAR", "2", &json!({}));
    let found = values(&stand_in, Standing::Maintainer, &["OWN"]).await.expect("an answer");
    assert_eq!((found.len(), outer_calls(&stand_in)), (1, (0, 0)));
    let found = values(&stand_in, Standing::Owner, &["OWN", "NEAR"]).await.expect("an answer");
    assert_eq!((found.len(), outer_calls(&stand_in)), (2, (1, 0)));
}

#[tokio::test]
async fn a_token_that_may_not_read_a_level_says_so_of_the_names_that_it_could_not_find() {
    let stand_in = GitLabStandIn::start().await;
    let project = stand_in.create_project(PROJECT, &[("a", "a\n")]);
    stand_in.set_variable(&project, "OWN", "1", &json!({}));
    stand_in.set_variable(&project, "KEPT", "kept", &json!({"protected": true}));
    stand_in.set_outer_variable(Some("company"), "FAR", "canary", &json!({}));
    let found = values(&stand_in, Standing::Maintainer, &["OWN", "FAR", "KEPT"]).await.expect("an answer");
    assert_eq!(found["OWN"], Ok("1".to_owned()));
    let why = found["FAR"].as_ref().expect_err("nobody may tell");
    for part in [
        "group company/web (that takes the role Owner in the group)",
        "group company (",
        "the instance (that takes an administrator)",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert!(found["KEPT"].as_ref().is_err_and(|why| why.contains("protected")), "{found:?}");
    let found = values(&stand_in, Standing::Owner, &["FAR", "NOWHERE"]).await.expect("an answer");
    assert_eq!(found["FAR"], Ok("canary".to_owned()));
    let why = found["NOWHERE"].as_ref().expect_err("it may stand at the instance");
    assert!(why.contains("the instance") && !why.contains("group"), "{why}");
}

#[tokio::test]
async fn a_level_that_cannot_be_reached_is_no_level_without_the_variable() {
    let stand_in = GitLabStandIn::start().await;
    stand_in.create_project(PROJECT, &[("a", "a\n")]);
    stand_in.set_outer_variable(None, "FAR", "instance", &json!({}));
    stand_in.fault(Fault::Status { route: Route::GroupVariables, code: 502, retry_after: None, times: 9 });
    let error =
        values(&stand_in, Standing::Administrator, &["FAR"]).await.expect_err("the group may have another value");
    assert!(error.is_retryable(), "{error}");
}
