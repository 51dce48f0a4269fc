//! The REST API: who may ask, and the small routes. Statuses and texts are GitLab's.

use std::sync::Arc;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine as _;
use serde_json::{Value, json};

use super::server::{Asked, Principal};
use super::state::{Route, Shared, Standing};
use super::{lint, merge_requests, notes, repository};

/// Answers one call of the API.
pub(super) fn answer(shared: &Arc<Shared>, route: Route, asked: &Asked) -> Response {
    if let Some(refused) = refuse_token(asked) {
        return refused;
    }
    if route == Route::Version {
        return match asked.principal {
            Principal::Anonymous => message(401, "401 Unauthorized"),
            _ => reply(200, &json!({"version": "19.1.0-ee", "revision": "0ab7ab5b", "enterprise": true})),
        };
    }
    if route == Route::OwnToken {
        return match asked.principal {
            Principal::Token(_, scope) => reply(200, &json!({"id": 3, "active": true, "scopes": [scope.name()]})),
            _ => message(401, "401 Unauthorized"),
        };
    }
    if let Route::GroupVariables | Route::InstanceVariables = route {
        return outer_variables(shared, route, asked);
    }
    let Some(id) = visible_project(shared, asked) else {
        return message(404, "404 Project Not Found");
    };
    if guest_is_refused(route, asked) {
        return message(403, "403 Forbidden");
    }
    match route {
        Route::Project => project(shared, id, asked),
        Route::Branch => branch(shared, id, asked),
        Route::File => file(shared, id, asked),
        Route::Lint => lint::answer(shared, id, asked),
        Route::Variables => variables(shared, id, asked),
        Route::MergeRequests => merge_requests::list(shared, id, asked),
        Route::MergeRequest => merge_requests::show(shared, id, asked),
        Route::CreateMergeRequest => merge_requests::create(shared, id, asked),
        Route::UpdateMergeRequest => merge_requests::update(shared, id, asked),
        Route::Issue => notes::issue(shared, id, asked),
        Route::Notes => notes::list(shared, id, asked),
        Route::CreateNote => notes::create(shared, id, asked),
        _ => reply(404, &json!({"error": "404 Not Found"})),
    }
}

/// Answers with a status and a JSON document.
pub(super) fn reply(status: u16, document: &Value) -> Response {
    let mut response = Response::new(Body::from(document.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a real status");
    response.headers_mut().insert("content-type", axum::http::HeaderValue::from_static("application/json"));
    response
}

/// Answers with a status and GitLab's `{"message": …}`.
pub(super) fn message(status: u16, text: &str) -> Response {
    reply(status, &json!({"message": text}))
}

fn refuse_token(asked: &Asked) -> Option<Response> {
    let reads = asked.method == "GET";
    let invalid = |text: &str| Some(reply(401, &json!({"error": "invalid_token", "error_description": text})));
    match asked.principal {
        Principal::Refused => Some(message(401, "401 Unauthorized")),
        Principal::Anonymous if !reads => Some(message(401, "401 Unauthorized")),
        Principal::Anonymous => None,
        Principal::Token(Standing::Expired, _) => {
            invalid("Token is expired. You can either do re-authorization or token refresh.")
        }
        Principal::Token(Standing::Revoked, _) => invalid("Token was revoked. You have to re-authorize from the user."),
        Principal::Token(_, scope) if (reads && scope.reads_api()) || scope == super::Scope::Api => None,
        Principal::Token(..) => {
            let needed = if reads { "api read_api" } else { "api" };
            Some(reply(
                403,
                &json!({
                    "error": "insufficient_scope",
                    "error_description": "The request requires higher privileges than provided by the access token.",
                    "scope": needed,
                }),
            ))
        }
    }
}

/// Finds the project if the caller may know of it.
fn visible_project(shared: &Shared, asked: &Asked) -> Option<u64> {
    let mut state = shared.state();
    let id = state.find(asked.segments.get(3)?)?;
    let member = matches!(asked.principal, Principal::Token(standing, _) if standing.is_member());
    (member || state.project(id).public).then_some(id)
}

fn guest_is_refused(route: Route, asked: &Asked) -> bool {
    let guest = matches!(asked.principal, Principal::Token(Standing::Guest | Standing::Outsider, _));
    let code = matches!(route, Route::Branch | Route::File | Route::Lint);
    let writes = matches!(route, Route::CreateMergeRequest | Route::UpdateMergeRequest);
    guest && (code || writes)
}

fn project(shared: &Shared, id: u64, asked: &Asked) -> Response {
    let mut state = shared.state();
    let project = state.project(id);
    let empty = repository::resolve(&project.git_dir, "refs/heads/main").is_none();
    let level = match asked.principal {
        Principal::Token(Standing::Developer, _) => json!({"access_level": 30, "notification_level": 3}),
        Principal::Token(standing, _) if standing.maintains() => json!({"access_level": 40, "notification_level": 3}),
        Principal::Token(Standing::Guest, _) => json!({"access_level": 10, "notification_level": 3}),
        _ => Value::Null,
    };
    let name = project.path.rsplit('/').next().unwrap_or_default();
    reply(
        200,
        &json!({
            "id": id,
            "name": name,
            "namespace": {
                "id": 501,
                "kind": "group",
                "full_path": project.path.rsplit_once('/').map(|(group, _)| group),
            },
            "path_with_namespace": project.path,
            "default_branch": if empty { Value::Null } else { json!("main") },
            "visibility": if project.public { "public" } else { "private" },
            "http_url_to_repo": format!("{}/{}.git", shared.url, project.path),
            "ssh_url_to_repo": format!("git@127.0.0.1:{}.git", project.path),
            "web_url": format!("{}/{}", shared.url, project.path),
            "ci_config_path": Value::Null,
            "archived": false,
            "empty_repo": empty,
            "permissions": {"project_access": level, "group_access": Value::Null},
        }),
    )
}

/// One page of the CI variables; Maintainers alone see them.
fn variables(shared: &Shared, id: u64, asked: &Asked) -> Response {
    if !matches!(asked.principal, Principal::Token(standing, _) if standing.maintains()) {
        return message(403, "403 Forbidden");
    }
    let all = shared.state().project(id).variables.clone();
    page_of(shared, asked, &all)
}

/// The CI variables of a group, which its owners alone see, or of the instance, which its administrators alone see.
fn outer_variables(shared: &Shared, route: Route, asked: &Asked) -> Response {
    let standing = match asked.principal {
        Principal::Token(standing, _) => standing,
        _ => return message(401, "401 Unauthorized"),
    };
    let state = shared.state();
    let (may, all) = match route {
        Route::GroupVariables => {
            let path = &asked.segments[3];
            if !state.has_group(path) || !standing.is_member() {
                return message(404, "404 Group Not Found");
            }
            let may = matches!(standing, Standing::Owner | Standing::Administrator);
            (may, state.group_variables.get(path).cloned().unwrap_or_default())
        }
        _ => (standing == Standing::Administrator, state.instance_variables.clone()),
    };
    drop(state);
    match may {
        true => page_of(shared, asked, &all),
        false => message(403, "403 Forbidden"),
    }
}

fn page_of(shared: &Shared, asked: &Asked, all: &[Value]) -> Response {
    let number =
        |name: &str, default: usize| asked.query.get(name).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (page, size) = (number("page", 1), number("per_page", 20).min(100));
    let shown: Vec<Value> = all.iter().skip((page - 1) * size).take(size).cloned().collect();
    let mut response = reply(200, &Value::Array(shown));
    if all.len() > page * size {
        let link = format!("<{}{}?per_page={size}&page={}>; rel=\"next\"", shared.url, asked.path, page + 1);
        response.headers_mut().insert("link", link.parse().expect("a link is a header value"));
    }
    response
}

fn branch(shared: &Shared, id: u64, asked: &Asked) -> Response {
    let git_dir = shared.state().project(id).git_dir.clone();
    let name = &asked.segments[6];
    match repository::resolve(&git_dir, &format!("refs/heads/{name}")) {
        None => message(404, "404 Branch Not Found"),
        Some(commit) => reply(
            200,
            &json!({
                "name": name,
                "default": name == "main",
                "protected": repository::is_protected(&git_dir, name),
                "can_push": true,
                "commit": {"id": commit, "short_id": &commit[..8], "title": "change", "parent_ids": []},
            }),
        ),
    }
}

fn file(shared: &Shared, id: u64, asked: &Asked) -> Response {
    let git_dir = shared.state().project(id).git_dir.clone();
    let raw = asked.segments.get(7).is_some();
    let reference = match asked.query.get("ref").map(String::as_str) {
        None if !raw => return reply(400, &json!({"error": "ref is missing"})),
        None | Some("HEAD") => "main",
        Some(reference) => reference,
    };
    let Some(commit) = repository::resolve(&git_dir, reference) else {
        return message(404, "404 Commit Not Found");
    };
    let path = &asked.segments[6];
    let Some(bytes) = repository::read(&git_dir, &commit, path) else {
        return message(404, "404 File Not Found");
    };
    if raw {
        let mut response = Response::new(Body::from(bytes));
        response.headers_mut().insert("content-type", axum::http::HeaderValue::from_static("text/plain"));
        return response;
    }
    reply(
        200,
        &json!({
            "file_name": path.rsplit('/').next(),
            "file_path": path,
            "size": bytes.len(),
            "encoding": "base64",
            "ref": reference,
            "commit_id": commit,
            "content": base64::engine::general_purpose::STANDARD.encode(&bytes),
        }),
    )
}
