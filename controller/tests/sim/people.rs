//! People: they submit jobs through the real API, and try elsewhere until they are heard.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use devfleet_proto::v1::SubmitRequest;
use devfleet_proto::v1::jobs_client::JobsClient;
use devfleet_shared::secret::Secret;
use rustls::ClientConfig;
use tonic::Request;

use crate::net;

/// Who submits, and what was accepted: the job of each key.
pub(crate) struct People {
    pub(crate) controllers: Vec<String>,
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) token: Secret,
    pub(crate) accepted: Mutex<Vec<(String, String)>>,
}

/// The key, and the title, of a job.
pub(crate) fn key(number: usize) -> String {
    format!("job-{number}")
}

/// The task of each job, longer than what is written besides.
pub(crate) fn task() -> String {
    "Fix it. ".repeat(3_000)
}

impl People {
    /// Submits a job, for as long as it takes.
    pub(crate) async fn submit(self: Arc<Self>, number: usize, at: Duration) {
        // sleep: until the job is due
        tokio::time::sleep(at).await;
        for turn in number.. {
            let channel = net::channel(&self.controllers[turn % self.controllers.len()], Arc::clone(&self.config));
            let key = key(number);
            let wanted = SubmitRequest {
                project: "web".into(),
                task: task(),
                title: key.clone(),
                idempotency_key: key.clone(),
                ..SubmitRequest::default()
            };
            let mut request = Request::new(wanted);
            let token = format!("Bearer {}", self.token.expose()).parse().expect("a token");
            request.metadata_mut().insert("authorization", token);
            request.set_timeout(Duration::from_secs(8));
            let answer = tokio::time::timeout(Duration::from_secs(10), JobsClient::new(channel).submit(request)).await;
            if let Ok(Ok(answer)) = answer {
                let job = answer.into_inner().job.expect("a job").id;
                self.accepted.lock().expect("no panic").push((key, job));
                return;
            }
            // sleep: before the next try
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}
