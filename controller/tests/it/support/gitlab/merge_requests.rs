//! Merge requests: one open per source and target branch, 409 for a second.
//!
//! Stricter than GitLab in one point: the source branch must exist, because devfleet pushes before it asks.

use axum::response::Response;
use serde_json::{Value, json};

use super::api::{message, reply};
use super::repository;
use super::server::Asked;
use super::state::{Shared, StoredMergeRequest};

/// The number of the fork that merge requests from elsewhere come from.
const FORK: u64 = 900;

fn document(shared: &Shared, (id, project): (u64, &str), found: &StoredMergeRequest) -> Value {
    json!({
        "id": 5_000 + found.iid,
        "iid": found.iid,
        "title": found.title,
        "description": found.description,
        "state": found.state,
        "source_branch": found.source_branch,
        "target_branch": found.target_branch,
        "sha": found.sha,
        "source_project_id": if found.from_fork { FORK } else { id },
        "target_project_id": id,
        "web_url": format!("{}/{project}/-/merge_requests/{}", shared.url, found.iid),
        "draft": found.title.starts_with("Draft:"),
        "detailed_merge_status": "preparing",
        "changes_count": Value::Null,
        "diff_refs": Value::Null,
        "author": {"id": 7, "username": "devfleet-bot"},
        "labels": [],
    })
}

pub(super) fn list(shared: &Shared, id: u64, asked: &Asked) -> Response {
    let mut state = shared.state();
    let project = state.project(id);
    let wants = |name: &str, value: &str| asked.query.get(name).is_none_or(|wanted| wanted == value || wanted == "all");
    let found: Vec<Value> = project
        .merge_requests
        .iter()
        .rev()
        .filter(|merge_request| {
            wants("state", &merge_request.state)
                && wants("source_branch", &merge_request.source_branch)
                && wants("target_branch", &merge_request.target_branch)
        })
        .map(|merge_request| document(shared, (id, &project.path), merge_request))
        .collect();
    reply(200, &Value::Array(found))
}

pub(super) fn show(shared: &Shared, id: u64, asked: &Asked) -> Response {
    let mut state = shared.state();
    let project = state.project(id);
    let number = asked.segments[5].parse::<u64>().unwrap_or_default();
    match project.merge_requests.iter().find(|merge_request| merge_request.iid == number) {
        None => message(404, "404 Not found"),
        Some(found) => reply(200, &document(shared, (id, &project.path), found)),
    }
}

pub(super) fn create(shared: &Shared, id: u64, asked: &Asked) -> Response {
    let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    let text = |name: &str| body.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let needed = ["title", "source_branch", "target_branch"];
    let missing: Vec<String> =
        needed.into_iter().filter(|name| text(name).is_none()).map(|name| format!("{name} is missing")).collect();
    let (Some(title), Some(source), Some(target)) = (text("title"), text("source_branch"), text("target_branch"))
    else {
        return reply(400, &json!({"error": missing.join(", ")}));
    };
    let mut state = shared.state();
    let project = state.project(id);
    let Some(sha) = repository::resolve(&project.git_dir, &format!("refs/heads/{source}")) else {
        return reply(400, &json!({"message": [format!("Source branch \"{source}\" does not exist")]}));
    };
    if source == target {
        return reply(422, &json!({"message": ["You can't use same project/branch for source and target"]}));
    }
    if title.chars().count() > 255 {
        return reply(400, &json!({"message": {"title": ["is too long (maximum is 255 characters)"]}}));
    }
    let rival = project.merge_requests.iter().find(|other| {
        other.state == "opened" && !other.from_fork && other.source_branch == source && other.target_branch == target
    });
    if let Some(rival) = rival {
        let text = format!("Another open merge request already exists for this source branch: !{}", rival.iid);
        return reply(409, &json!({"message": [text]}));
    }
    let made = StoredMergeRequest {
        iid: project.merge_requests.len() as u64 + 1,
        title: title.to_owned(),
        description: text("description").unwrap_or_default().to_owned(),
        source_branch: source.to_owned(),
        target_branch: target.to_owned(),
        state: "opened".to_owned(),
        sha,
        from_fork: false,
    };
    project.merge_requests.push(made.clone());
    reply(201, &document(shared, (id, &project.path), &made))
}

pub(super) fn update(shared: &Shared, id: u64, asked: &Asked) -> Response {
    let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    let mut state = shared.state();
    let project = state.project(id);
    let path = project.path.clone();
    let number = asked.segments[5].parse::<u64>().unwrap_or_default();
    let Some(found) = project.merge_requests.iter_mut().find(|merge_request| merge_request.iid == number) else {
        return message(404, "404 Not found");
    };
    for (name, field) in [("title", &mut found.title), ("description", &mut found.description)] {
        if let Some(text) = body.get(name).and_then(Value::as_str) {
            text.clone_into(field);
        }
    }
    match body.get("state_event").and_then(Value::as_str) {
        Some("close") => "closed".clone_into(&mut found.state),
        Some("reopen") => "opened".clone_into(&mut found.state),
        _ => {}
    }
    reply(200, &document(shared, (id, &path), found))
}
