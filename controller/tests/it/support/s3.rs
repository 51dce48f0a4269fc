//! A storage that speaks the protocol of S3 (moto's server), and a proxy before it that has all its troubles.
//!
//! deploy/setup.sh puts the server below target/moto. It is a process of one test alone, and ends with it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use devfleet_controller::config::{Config, FilesConfig};
use devfleet_controller::files::{self, Files};
use tokio::task::JoinSet;

use super::certificates::Certificates;
use super::site::wait_async;

const BUCKET: &str = "devfleet-test";

/// The server, with one bucket.
pub(crate) struct Bucket {
    process: Child,
    /// Where it answers.
    pub(crate) endpoint: String,
    keys: tempfile::TempDir,
}

impl Bucket {
    /// Starts a server and makes the bucket.
    pub(crate) async fn start() -> Bucket {
        Bucket::launch(None).await
    }

    /// The same, with a certificate of an authority that nobody else knows.
    pub(crate) async fn over_tls() -> Bucket {
        Bucket::launch(Some(Certificates::make())).await
    }

    async fn launch(tls: Option<Certificates>) -> Bucket {
        devfleet_shared::tls::install_provider();
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|held| held.local_addr()).expect("a port").port();
        let keys = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(keys.path().join(name), text).expect("written");
        write("access", "testing\n");
        write("secret", "testing\n");
        let mut command = Command::new(program());
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let mut client = reqwest::Client::builder();
        if let Some(Certificates { ca, certificate, key }) = &tls {
            write("ca.pem", ca);
            write("cert.pem", certificate);
            write("key.pem", key);
            command.arg("--ssl-cert").arg(keys.path().join("cert.pem"));
            command.arg("--ssl-key").arg(keys.path().join("key.pem"));
            client = client.add_root_certificate(reqwest::Certificate::from_pem(ca.as_bytes()).expect("a certificate"));
        }
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto's server runs (deploy/setup.sh test fetches it)");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = format!("{scheme}://127.0.0.1:{port}");
        let bucket = Bucket { process, endpoint, keys };
        let (client, url) = (client.build().expect("a client"), format!("{}/{BUCKET}", bucket.endpoint));
        wait_async("the bucket", async || {
            let made = client.put(&url).send().await.ok()?;
            made.status().is_success().then_some(())
        })
        .await;
        bucket
    }

    /// Returns what a controller's configuration says of files in the bucket.
    pub(crate) fn toml(&self, endpoint: &str, bucket: &str, prefix: &str) -> String {
        let keys = self.keys.path().display();
        format!(
            "kind = \"s3\"\nbucket = \"{bucket}\"\nendpoint = \"{endpoint}\"\nprefix = \"{prefix}\"\n\
             access_key = \"file://{keys}/access\"\nsecret_key = \"file://{keys}/secret\"\n"
        )
    }

    /// Returns the whole `[files]` table of a controller, with the authority to trust.
    pub(crate) fn table(&self, prefix: &str) -> String {
        let ca = self.authority();
        format!("[files]\n{}ca = {ca:?}\n", self.toml(&self.endpoint, BUCKET, prefix))
    }

    /// Opens files over TLS, trusting this authority, a PEM file; `None`: those that the machine trusts.
    pub(crate) async fn trusting(&self, prefix: &str, ca: Option<&Path>) -> Files {
        let ca = ca.map(|ca| format!("ca = {ca:?}\n")).unwrap_or_default();
        open(&format!("{}{ca}", self.toml(&self.endpoint, BUCKET, prefix))).await
    }

    /// The authority of the server's certificate, as a PEM file.
    pub(crate) fn authority(&self) -> PathBuf {
        self.keys.path().join("ca.pem")
    }

    /// Opens the files of a fleet, as a controller does.
    pub(crate) async fn files(&self, prefix: &str) -> Files {
        open(&self.toml(&self.endpoint, BUCKET, prefix)).await
    }

    /// Opens files in another bucket, which nobody made.
    pub(crate) async fn other(&self, bucket: &str) -> Files {
        open(&self.toml(&self.endpoint, bucket, "")).await
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

async fn open(toml: &str) -> Files {
    let files: FilesConfig = toml::from_str(toml).expect("valid");
    let config = Config { files: Some(files), ..Config::in_directory("/nonexistent") };
    config.validate().expect("valid");
    files::open(&config).await.expect("opened")
}

fn program() -> PathBuf {
    let target = std::path::Path::new(env!("CARGO_BIN_EXE_devfleet-controller")).ancestors().nth(2).expect("target");
    target.join("moto/bin/moto_server")
}

/// What the proxy does with requests, and with how many of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaves {
    /// Passes all on.
    Well,
    /// Answers with a status of its own.
    Answers(u16, usize),
    /// Passes on, late.
    Delays(Duration, usize),
    /// Passes on, and does not tell what came of it.
    LosesAnswers(usize),
}

/// The proxy. Ends with its value.
pub(crate) struct Front<'a> {
    bucket: &'a Bucket,
    endpoint: String,
    mood: Arc<Mutex<Behaves>>,
    _running: JoinSet<()>,
}

#[derive(Clone)]
struct Passing {
    client: reqwest::Client,
    target: String,
    mood: Arc<Mutex<Behaves>>,
}

impl Front<'_> {
    pub(crate) async fn of(bucket: &Bucket) -> Front<'_> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let mood = Arc::new(Mutex::new(Behaves::Well));
        let state = Passing { client: reqwest::Client::new(), target: bucket.endpoint.clone(), mood: mood.clone() };
        let app = axum::Router::new().fallback(pass).with_state(state);
        let mut running = JoinSet::new();
        running.spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        Front { bucket, endpoint, mood, _running: running }
    }

    pub(crate) fn behave(&self, mood: Behaves) {
        *self.mood.lock().expect("no test panicked here") = mood;
    }

    pub(crate) async fn files(&self, prefix: &str) -> Files {
        open(&self.bucket.toml(&self.endpoint, BUCKET, prefix)).await
    }
}

impl Passing {
    /// Says what is done with this request, and counts it.
    fn mood(&self) -> Behaves {
        let mut mood = self.mood.lock().expect("no test panicked here");
        let now = *mood;
        *mood = match now {
            Behaves::Answers(_, 1) | Behaves::Delays(_, 1) | Behaves::LosesAnswers(1) | Behaves::Well => Behaves::Well,
            Behaves::Answers(status, left) => Behaves::Answers(status, left - 1),
            Behaves::Delays(time, left) => Behaves::Delays(time, left - 1),
            Behaves::LosesAnswers(left) => Behaves::LosesAnswers(left - 1),
        };
        now
    }
}

async fn pass(State(passing): State<Passing>, request: Request) -> Response {
    let mood = passing.mood();
    let answer = |status: u16, body: Bytes| {
        let status = StatusCode::from_u16(status).expect("a status");
        Response::builder().status(status).body(Body::from(body)).expect("a response")
    };
    if let Behaves::Answers(status, _) = mood {
        return answer(status, Bytes::from_static(b"<Error><Code>Trouble</Code></Error>"));
    }
    if let Behaves::Delays(time, _) = mood {
        // sleep: a slow storage
        tokio::time::sleep(time).await;
    }
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 64 << 20).await.expect("a body");
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let passed = passing.client.request(head.method, format!("{}{path}", passing.target)).headers(head.headers);
    let told = passed.body(body).send().await.expect("the server answers");
    if matches!(mood, Behaves::LosesAnswers(_)) {
        return answer(500, Bytes::new());
    }
    let (status, headers) = (told.status().as_u16(), told.headers().clone());
    let mut response = answer(status, told.bytes().await.expect("a body"));
    for (name, value) in &headers {
        if name != "transfer-encoding" && name != "connection" {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}
