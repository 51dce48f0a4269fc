//! Issues and their notes, paged as GitLab pages.

use axum::response::Response;
use serde_json::{Value, json};

use super::api::{message, reply};
use super::server::Asked;
use super::state::{Shared, StoredNote};

fn document(note: &StoredNote) -> Value {
    json!({
        "id": note.id,
        "body": note.body,
        "system": false,
        "internal": false,
        "noteable_type": "Issue",
        "author": {"username": note.author},
    })
}

fn number(asked: &Asked) -> u64 {
    asked.segments[5].parse().unwrap_or_default()
}

pub(super) fn issue(shared: &Shared, id: u64, asked: &Asked) -> Response {
    let mut state = shared.state();
    let project = state.project(id);
    let path = project.path.clone();
    let number = number(asked);
    match project.issue(number) {
        None => message(404, "404 Issue Not Found"),
        Some(found) => reply(
            200,
            &json!({
                "iid": number,
                "title": found.title,
                "description": found.description,
                "state": "opened",
                "web_url": format!("{}/{path}/-/issues/{number}", shared.url),
                "user_notes_count": found.notes.len(),
            }),
        ),
    }
}

pub(super) fn list(shared: &Shared, id: u64, asked: &Asked) -> Response {
    let mut state = shared.state();
    let Some(found) = state.project(id).issue(number(asked)) else {
        return message(404, "404 Not found");
    };
    let wanted =
        |name: &str, default: usize| asked.query.get(name).and_then(|text| text.parse().ok()).unwrap_or(default);
    let per_page = wanted("per_page", 20).clamp(1, 100);
    let page = wanted("page", 1).max(1);
    let mut notes: Vec<Value> = found.notes.iter().map(document).collect();
    if asked.query.get("sort").is_none_or(|sort| sort != "asc") {
        notes.reverse();
    }
    let total = notes.len();
    let shown: Vec<Value> = notes.into_iter().skip((page - 1) * per_page).take(per_page).collect();
    let mut response = reply(200, &Value::Array(shown));
    let kept = asked.raw_query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("page="));
    let kept: Vec<&str> = kept.collect();
    let at = |page: usize| format!("<{}{}?page={page}&{}>", shared.url, asked.path, kept.join("&"));
    let mut links = vec![format!("{}; rel=\"first\"", at(1))];
    if page * per_page < total {
        links.insert(0, format!("{}; rel=\"next\"", at(page + 1)));
        response.headers_mut().insert("x-next-page", (page + 1).into());
    }
    let link = links.join(", ").parse().expect("a link is a header value");
    response.headers_mut().insert("link", link);
    response.headers_mut().insert("x-total", total.into());
    response
}

/// Says whether a body is nothing but quick actions: GitLab then carries them out and makes no note.
fn only_quick_actions(body: &str) -> bool {
    body.lines().all(|line| line.starts_with('/') || line.trim().is_empty())
}

pub(super) fn create(shared: &Shared, id: u64, asked: &Asked) -> Response {
    let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    let Some(text) = body.get("body").and_then(Value::as_str) else {
        return reply(400, &json!({"error": "body is missing"}));
    };
    if only_quick_actions(text) {
        return reply(202, &json!({"commands_changes": {}, "summary": ["Commands applied"]}));
    }
    match shared.state().project(id).add_note(number(asked), text, "devfleet-bot") {
        None => message(404, "404 Issue Not Found"),
        Some(note) => reply(201, &document(&note)),
    }
}
