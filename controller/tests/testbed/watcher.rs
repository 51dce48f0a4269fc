//! Watches the store itself, beside devfleet: every change of every key from the first revision on, with etcd's own client.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::fleet::{Fleet, MEMBERS};
use crate::history::Change;

/// A watch that writes down what it sees.
pub(crate) struct Watcher {
    changes: Arc<Mutex<Vec<Change>>>,
    child: Child,
    reader: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts watching; what was before is seen too.
    pub(crate) fn start(fleet: &Fleet) -> Self {
        let members: Vec<_> = MEMBERS.iter().map(|member| format!("http://{}:2379", fleet.address(member))).collect();
        let mut child = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", members.join(",")))
            .args(["--write-out=json", "watch", "--prefix", "/devfleet/v1/", "--rev=1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcdctl can be run");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let changes = Arc::<Mutex<Vec<Change>>>::default();
        let kept = Arc::clone(&changes);
        let reader = std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let answer: Value = serde_json::from_str(&line).unwrap_or_default();
                let events = answer["Events"].as_array().cloned().unwrap_or_default();
                kept.lock().expect("the changes").extend(events.iter().filter_map(change));
            }
        });
        Self { changes, child, reader: Some(reader) }
    }

    /// Returns all that was seen.
    pub(crate) fn changes(&self) -> Vec<Change> {
        self.changes.lock().expect("the changes").clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if let Some(reader) = self.reader.take() {
            drop(reader.join());
        }
    }
}

fn change(event: &Value) -> Option<Change> {
    let bytes = |name: &str| STANDARD.decode(event["kv"][name].as_str()?).ok();
    let deleted = event["type"].as_u64() == Some(1) || event["type"] == "DELETE";
    Some(Change {
        revision: event["kv"]["mod_revision"].as_u64()?,
        key: String::from_utf8(bytes("key")?).ok()?,
        // A value that is no JSON counts as nothing that a checker reads.
        value: (!deleted)
            .then(|| bytes("value").and_then(|value| serde_json::from_slice(&value).ok()))
            .map(Option::unwrap_or_default),
    })
}
