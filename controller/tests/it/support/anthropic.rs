//! A model that runs inside the test: Anthropic's streaming protocol, with a script instead of thoughts.
//!
//! It asks for one Bash command, and ends when it has the result. Containers reach it over Docker's default bridge.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::site::docker;

/// What it does.
#[derive(Debug, Clone)]
pub(crate) enum Script {
    /// Lets this be run in Bash, then says these last words.
    Run { command: String, last_words: String },
    /// Answers each call with this error.
    Refuse { status: u16, kind: &'static str, message: &'static str },
}

struct Part {
    script: Script,
    key: String,
    calls: AtomicUsize,
}

/// A model on a port that containers reach. Stops when dropped.
pub(crate) struct ModelStandIn {
    address: SocketAddr,
    part: Arc<Part>,
    task: JoinHandle<()>,
}

impl ModelStandIn {
    /// Starts one that knows a single key.
    pub(crate) async fn start(script: Script, key: &str) -> Self {
        let listener = tokio::net::TcpListener::bind((bridge().as_str(), 0)).await.expect("a port on Docker's bridge");
        let address = listener.local_addr().expect("an address");
        let part = Arc::new(Part { script, key: key.to_owned(), calls: AtomicUsize::new(0) });
        let routes = Router::new().route("/v1/messages", post(answer)).with_state(Arc::clone(&part));
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.expect("it serves") });
        Self { address, part, task }
    }

    /// Returns the base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns how often it was asked with the right key.
    pub(crate) fn calls(&self) -> usize {
        self.part.calls.load(Ordering::SeqCst)
    }
}

impl Drop for ModelStandIn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns this machine's address on Docker's default bridge. Some engines name the gateway, some only the subnet.
fn bridge() -> String {
    let format = "{{range .IPAM.Config}}{{.Gateway}} {{.Subnet}}{{end}}";
    let found = docker(&["network", "inspect", "bridge", "--format", format]);
    let word = found.split_whitespace().next().expect("the bridge has an address");
    match word.split_once('/') {
        Some((subnet, _)) => subnet.rsplit_once('.').map(|(net, _)| format!("{net}.1")).expect("an address"),
        None => word.to_owned(),
    }
}

async fn answer(State(part): State<Arc<Part>>, headers: HeaderMap, axum::Json(asked): axum::Json<Value>) -> Response {
    if headers.get("x-api-key").is_none_or(|key| key.as_bytes() != part.key.as_bytes()) {
        return error(401, "authentication_error", "invalid x-api-key");
    }
    part.calls.fetch_add(1, Ordering::SeqCst);
    let (command, last_words) = match &part.script {
        Script::Run { command, last_words } => (command, last_words),
        Script::Refuse { status, kind, message } => return error(*status, kind, message),
    };
    let messages = asked["messages"].as_array().cloned().unwrap_or_default();
    let blocks = |message: &Value| message["content"].as_array().cloned().unwrap_or_default();
    let has_result = messages.iter().flat_map(blocks).any(|block| block["type"] == "tool_result");
    let input = json!({ "command": command, "description": "Do the task" }).to_string();
    let (block, delta, reason) = match has_result {
        false => (
            json!({"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}}),
            json!({"type": "input_json_delta", "partial_json": input}),
            "tool_use",
        ),
        true => (json!({"type": "text", "text": ""}), json!({"type": "text_delta", "text": last_words}), "end_turn"),
    };
    let message = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": asked["model"], "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": 10, "output_tokens": 1},
    });
    let events = [
        json!({"type": "message_start", "message": message}),
        json!({"type": "content_block_start", "index": 0, "content_block": block}),
        json!({"type": "content_block_delta", "index": 0, "delta": delta}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": {"output_tokens": 9}}),
        json!({"type": "message_stop"}),
    ];
    let lines = events.map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default()));
    ([("content-type", "text/event-stream")], lines.concat()).into_response()
}

fn error(status: u16, kind: &str, message: &str) -> Response {
    let body = json!({"type": "error", "error": {"type": kind, "message": message}});
    (StatusCode::from_u16(status).expect("a status"), axum::Json(body)).into_response()
}
