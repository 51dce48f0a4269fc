//! A controller with canned answers over real TLS, and the CLI's real binary run against it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::looking;
use devfleet_proto::v1;
use devfleet_proto::v1::fleet_server::{Fleet, FleetServer};
use devfleet_proto::v1::jobs_server::{Jobs, JobsServer};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::process::Command;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

pub(crate) const JOB: &str = "0b5e1d2c-1111-4222-8333-444444444444";
pub(crate) const TOKEN: &str = "dft_1_canarycanary";
pub(crate) const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// What a stream does after its messages.
#[derive(Clone)]
pub(crate) enum Then {
    /// Ends well.
    End,
    /// Breaks with UNAVAILABLE, as a controller that shuts down does.
    Break,
    /// Sends nothing more.
    Hang,
}

/// What the fake answers, and what it was asked.
#[derive(Default)]
pub(crate) struct Script {
    /// One entry for each time the stream is opened; the last one repeats.
    pub(crate) watch: Vec<(Vec<v1::Job>, Option<Then>)>,
    pub(crate) logs: Vec<(Vec<v1::LogRecord>, Option<Then>)>,
    /// Refusals by call, each used once.
    pub(crate) refuse: HashMap<&'static str, Vec<Status>>,
    /// Calls in order, with whether they had a deadline.
    pub(crate) calls: Vec<(&'static str, bool)>,
    pub(crate) submitted: Vec<v1::SubmitRequest>,
    pub(crate) approved: Vec<String>,
    /// What GetJob answers.
    pub(crate) job: Option<v1::Job>,
    pub(crate) hosts: Vec<v1::Host>,
}

#[derive(Clone, Default)]
pub(crate) struct Canned(pub(crate) Arc<Mutex<Script>>);

/// A refusal with a reason for programs.
pub(crate) fn refusal(code: Code, reason: &str, message: &str) -> Status {
    Status::with_error_details(code, message, ErrorDetails::with_error_info(reason, "devfleet", []))
}

impl Canned {
    pub(crate) fn script<T>(&self, change: impl FnOnce(&mut Script) -> T) -> T {
        change(&mut self.0.lock().expect("not poisoned"))
    }

    fn asked<T>(&self, call: &'static str, request: &Request<T>) -> Result<(), Status> {
        self.script(|script| {
            script.calls.push((call, request.metadata().contains_key("grpc-timeout")));
            let refused = script.refuse.get_mut(call).filter(|list| !list.is_empty()).map(|list| list.remove(0));
            refused.map_or(Ok(()), Err)
        })?;
        let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        if bearer == Some(&format!("Bearer {TOKEN}")) {
            return Ok(());
        }
        Err(refusal(Code::Unauthenticated, "UNKNOWN_TOKEN", "this token is not known here"))
    }
}

pub(crate) fn job(phase: &str, outcome: &str) -> v1::Job {
    v1::Job {
        id: JOB.into(),
        project: "tally".into(),
        title: "Fix the count".into(),
        task: "Fix the \x1b[2Jcount".into(),
        agent: "fix".into(),
        base_branch: "main".into(),
        phase: phase.into(),
        outcome: outcome.into(),
        submitted_by: "ann".into(),
        submitted_unix_ms: 1_700_000_000_000,
        phase_since_unix_ms: 1_700_000_000_000,
        ..v1::Job::default()
    }
}

pub(crate) fn record(attempt: &str, data: &[u8]) -> v1::LogRecord {
    v1::LogRecord {
        unix_ms: 1_700_000_000_000,
        source: "agent".into(),
        channel: v1::log_record::Channel::Out.into(),
        data: data.into(),
        attempt: attempt.into(),
        ..v1::LogRecord::default()
    }
}

fn project() -> v1::Project {
    v1::Project { name: "tally".into(), repository: "/r.git".into(), forge: "git".into(), ..v1::Project::default() }
}

pub(crate) fn host(name: &str) -> v1::Host {
    let amount = v1::Resources { slots: 10, memory_bytes: 1 << 30, ..v1::Resources::default() };
    let inventory = v1::HostInventory { total: Some(amount), free: Some(amount), ..v1::HostInventory::default() };
    v1::Host { id: "h1".into(), name: name.into(), connected: true, inventory: Some(inventory), ..v1::Host::default() }
}

type Answer<T> = Result<Response<T>, Status>;
type Stream<T> = ReceiverStream<Result<T, Status>>;

fn stream<T: Clone + Send + 'static>(list: &mut Vec<(Vec<T>, Option<Then>)>) -> Response<Stream<T>> {
    let (messages, then) = if list.len() > 1 { list.remove(0) } else { list.first().cloned().unwrap_or_default() };
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        for message in messages {
            if sender.send(Ok(message)).await.is_err() {
                return;
            }
        }
        match then.unwrap_or(Then::End) {
            Then::End => {}
            Then::Break => drop(sender.send(Err(Status::unavailable("shutting down"))).await),
            Then::Hang => sender.closed().await,
        }
    });
    Response::new(ReceiverStream::new(receiver))
}

#[tonic::async_trait]
impl Jobs for Canned {
    type WatchJobStream = Stream<v1::Job>;
    type ReadLogsStream = Stream<v1::LogRecord>;

    async fn apply_project(&self, request: Request<v1::ApplyProjectRequest>) -> Answer<v1::ApplyProjectResponse> {
        self.asked("ApplyProject", &request)?;
        Ok(Response::new(v1::ApplyProjectResponse { project: Some(project()), created: true }))
    }
    async fn list_projects(&self, request: Request<v1::ListProjectsRequest>) -> Answer<v1::ListProjectsResponse> {
        self.asked("ListProjects", &request)?;
        Ok(Response::new(v1::ListProjectsResponse { projects: vec![project()] }))
    }
    async fn remove_project(&self, request: Request<v1::RemoveProjectRequest>) -> Answer<v1::RemoveProjectResponse> {
        self.asked("RemoveProject", &request)?;
        Ok(Response::new(v1::RemoveProjectResponse {}))
    }
    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Answer<v1::SubmitResponse> {
        self.script(|script| script.submitted.push(request.get_ref().clone()));
        self.asked("Submit", &request)?;
        Ok(Response::new(v1::SubmitResponse { job: Some(job("submitted", "")), created: true }))
    }
    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Answer<v1::Job> {
        self.asked("GetJob", &request)?;
        if !JOB.starts_with(&request.get_ref().job) {
            return Err(refusal(Code::NotFound, "NO_SUCH_JOB", "there is no job whose id begins so"));
        }
        Ok(Response::new(self.script(|script| script.job.clone()).unwrap_or_else(|| job("running", ""))))
    }
    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Answer<v1::ListJobsResponse> {
        self.asked("ListJobs", &request)?;
        Ok(Response::new(v1::ListJobsResponse { jobs: vec![job("running", ""), job("ended", "succeeded")] }))
    }
    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Answer<Self::WatchJobStream> {
        self.asked("WatchJob", &request)?;
        Ok(self.script(|script| stream(&mut script.watch)))
    }
    async fn get_proposal_diff(&self, request: Request<v1::GetProposalDiffRequest>) -> Answer<v1::ProposalDiff> {
        self.asked("GetProposalDiff", &request)?;
        let change = v1::FactChange { fact: "image".into(), former: "python:3.11".into(), now: "python:3.12".into() };
        Ok(Response::new(v1::ProposalDiff {
            job: JOB.into(),
            former_digest: DIGEST.into(),
            digest: DIGEST.into(),
            facts: vec![change],
            dockerfile: String::new(),
        }))
    }
    async fn get_proposal(&self, request: Request<v1::GetProposalRequest>) -> Answer<v1::Proposal> {
        self.asked("GetProposal", &request)?;
        let recipe = v1::Recipe { dockerfile: "FROM python\nRUN \x1b[1mtrue\n".into(), ..v1::Recipe::default() };
        Ok(Response::new(v1::Proposal {
            job: JOB.into(),
            digest: DIGEST.into(),
            plan: "1. fix".into(),
            environment: Some(v1::Environment { image: "python".into(), ..v1::Environment::default() }),
            recipe: Some(recipe),
            compose: "services: {}\n".into(),
            confidence: 0.5,
            ..v1::Proposal::default()
        }))
    }
    async fn approve(&self, request: Request<v1::ApproveRequest>) -> Answer<v1::Job> {
        self.asked("Approve", &request)?;
        self.script(|script| script.approved.push(request.get_ref().digest.clone()));
        if request.get_ref().digest != DIGEST {
            return Err(refusal(Code::FailedPrecondition, "STALE_DIGEST", "the proposal has changed since"));
        }
        Ok(Response::new(job("queued", "")))
    }
    async fn reject(&self, request: Request<v1::RejectRequest>) -> Answer<v1::Job> {
        self.asked("Reject", &request)?;
        Ok(Response::new(job("ended", "rejected")))
    }
    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Answer<v1::Job> {
        self.asked("Cancel", &request)?;
        Ok(Response::new(job("running", "")))
    }
    async fn get_diff(&self, request: Request<v1::GetDiffRequest>) -> Answer<v1::Diff> {
        self.asked("GetDiff", &request)?;
        let text = "--- a/x\n+++ b/x\n+\x1b[2Jnew\n".to_owned();
        Ok(Response::new(v1::Diff { text, truncated: false, merge_request: None }))
    }
    async fn read_logs(&self, request: Request<v1::ReadLogsRequest>) -> Answer<Self::ReadLogsStream> {
        self.asked("ReadLogs", &request)?;
        Ok(self.script(|script| stream(&mut script.logs)))
    }
}

#[tonic::async_trait]
impl Fleet for Canned {
    async fn who_am_i(&self, request: Request<v1::WhoAmIRequest>) -> Answer<v1::WhoAmIResponse> {
        self.asked("WhoAmI", &request)?;
        Ok(Response::new(v1::WhoAmIResponse { name: "ann".into(), role: "operator".into() }))
    }
    async fn list_hosts(&self, request: Request<v1::ListHostsRequest>) -> Answer<v1::ListHostsResponse> {
        self.asked("ListHosts", &request)?;
        Ok(Response::new(v1::ListHostsResponse { hosts: self.script(|script| script.hosts.clone()) }))
    }
    async fn get_host(&self, request: Request<v1::GetHostRequest>) -> Answer<v1::Host> {
        self.asked("GetHost", &request)?;
        Ok(Response::new(host(&request.get_ref().host)))
    }
    async fn cordon_host(&self, request: Request<v1::CordonHostRequest>) -> Answer<v1::Host> {
        self.asked("CordonHost", &request)?;
        let by = ("ann".to_owned(), request.get_ref().reason.clone());
        Ok(Response::new(v1::Host { state: "cordoned".into(), state_by: by.0, state_reason: by.1, ..host("box1") }))
    }
    async fn drain_host(&self, request: Request<v1::DrainHostRequest>) -> Answer<v1::Host> {
        self.asked("DrainHost", &request)?;
        let then = request.get_ref().then.clone();
        let state = ("draining".to_owned(), "ann".to_owned());
        Ok(Response::new(v1::Host { state: state.0, state_by: state.1, drain_then: then, running: 2, ..host("box1") }))
    }
    async fn resume_host(&self, request: Request<v1::ResumeHostRequest>) -> Answer<v1::Host> {
        self.asked("ResumeHost", &request)?;
        Ok(Response::new(host(&request.get_ref().host)))
    }
    async fn label_host(&self, request: Request<v1::LabelHostRequest>) -> Answer<v1::Host> {
        self.asked("LabelHost", &request)?;
        Ok(Response::new(v1::Host { labels: request.into_inner().set, ..host("box1") }))
    }
    async fn remove_host(&self, request: Request<v1::RemoveHostRequest>) -> Answer<v1::RemoveHostResponse> {
        self.asked("RemoveHost", &request)?;
        Ok(Response::new(v1::RemoveHostResponse { host_id: "1111".into(), name: "box1".into(), jobs: 2 }))
    }
    async fn list_controllers(
        &self,
        request: Request<v1::ListControllersRequest>,
    ) -> Answer<v1::ListControllersResponse> {
        self.asked("ListControllers", &request)?;
        let leads = v1::Controller { id: "c1".into(), leads: true, term: 3, ..v1::Controller::default() };
        Ok(Response::new(v1::ListControllersResponse { controllers: vec![leads] }))
    }
    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Answer<v1::CreateJoinTokenResponse> {
        self.asked("CreateJoinToken", &request)?;
        let expires_unix_ms = 1_700_000_000_000;
        Ok(Response::new(v1::CreateJoinTokenResponse { token: "dfj_joincanary".into(), expires_unix_ms }))
    }
    async fn create_token(&self, request: Request<v1::CreateTokenRequest>) -> Answer<v1::CreateTokenResponse> {
        self.asked("CreateToken", &request)?;
        Ok(Response::new(v1::CreateTokenResponse { id: "t2".into(), token: "dft_t2_new".into() }))
    }
    async fn list_tokens(&self, request: Request<v1::ListTokensRequest>) -> Answer<v1::ListTokensResponse> {
        self.asked("ListTokens", &request)?;
        let token = v1::Token { id: "t1".into(), name: "ann".into(), role: "operator".into(), ..v1::Token::default() };
        Ok(Response::new(v1::ListTokensResponse { tokens: vec![token] }))
    }
    async fn revoke_token(&self, request: Request<v1::RevokeTokenRequest>) -> Answer<v1::RevokeTokenResponse> {
        self.asked("RevokeToken", &request)?;
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }
    async fn sweep(&self, request: Request<v1::SweepRequest>) -> Answer<v1::SweepResponse> {
        self.asked("Sweep", &request)?;
        let objects = vec![v1::SweptObject { kind: "volume".into(), name: "v".into(), ..v1::SweptObject::default() }];
        let hosts = vec![v1::HostSweep { host: "box1".into(), objects, error: String::new() }];
        Ok(Response::new(v1::SweepResponse { hosts }))
    }
    async fn doctor(&self, request: Request<v1::DoctorRequest>) -> Answer<v1::DoctorResponse> {
        self.asked("Doctor", &request)?;
        let message = "full: free some room".to_owned();
        let finding = v1::Finding { subject: "box1".into(), check: "disk".into(), ok: false, message };
        Ok(Response::new(v1::DoctorResponse { findings: vec![finding] }))
    }
    async fn get_settings(&self, request: Request<v1::GetSettingsRequest>) -> Answer<v1::Settings> {
        self.asked("GetSettings", &request)?;
        Ok(Response::new(v1::Settings { max_running: 5, max_running_default: 5, ..v1::Settings::default() }))
    }
    async fn set_settings(&self, request: Request<v1::SetSettingsRequest>) -> Answer<v1::Settings> {
        self.asked("SetSettings", &request)?;
        let max_running = request.into_inner().max_running.unwrap_or(5);
        let changed_by = "ada".to_owned();
        Ok(Response::new(v1::Settings {
            max_running,
            max_running_default: 5,
            changed_by,
            changed_unix_ms: 1_000,
            ..v1::Settings::default()
        }))
    }
    async fn join(&self, _: Request<v1::JoinRequest>) -> Answer<v1::JoinResponse> {
        Err(Status::unimplemented("not for the CLI"))
    }
    async fn renew_certificate(&self, _: Request<v1::RenewCertificateRequest>) -> Answer<v1::RenewCertificateResponse> {
        Err(Status::unimplemented("not for the CLI"))
    }
}

/// A fake controller with a context file for it.
pub(crate) struct Fake {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) context: PathBuf,
    pub(crate) address: SocketAddr,
    pub(crate) authority: String,
    pub(crate) canned: Canned,
    identity: Identity,
    running: Option<tokio::runtime::Runtime>,
}

impl Fake {
    pub(crate) async fn start() -> Fake {
        let (authority, identity) = certificates();
        let dir = tempfile::tempdir().expect("a directory");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let context = dir.path().join("context.toml");
        let canned = Canned::default();
        let mut fake = Fake { dir, context, address, authority, canned, identity, running: None };
        fake.write_context(&fake.authority.clone(), TOKEN);
        fake.serve(listener);
        fake
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(crate) fn write_context(&self, authority: &str, token: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let url = self.url();
        let text = format!("controller = '{url}'\nauthority = '''\n{authority}'''\ntoken = '{token}'\n");
        std::fs::write(&self.context, text).expect("written");
        std::fs::set_permissions(&self.context, std::fs::Permissions::from_mode(0o600)).expect("private");
    }

    /// Serves on a runtime of its own: ending that breaks every connection, as a crash does.
    fn serve(&mut self, listener: std::net::TcpListener) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (reporter, health) = tonic_health::server::health_reporter();
        let router = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(self.identity.clone()))
            .expect("TLS settings")
            .add_service(health)
            .add_service(JobsServer::new(self.canned.clone()))
            .add_service(FleetServer::new(self.canned.clone()));
        runtime.spawn(async move {
            reporter.set_serving::<JobsServer<Canned>>().await;
            listener.set_nonblocking(true).expect("set");
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("served");
        });
        self.running = Some(runtime);
    }

    /// Breaks every connection and does not come back until `resume`.
    pub(crate) async fn crash(&mut self) {
        self.running.take().expect("it runs").shutdown_background();
        let address = self.address;
        until("the port's end", || std::net::TcpStream::connect(address).is_err().then_some(())).await;
    }

    /// Listens again at the same address.
    pub(crate) async fn resume(&mut self) {
        let address = self.address;
        let listener = until("the same port", || std::net::TcpListener::bind(address).ok()).await;
        self.serve(listener);
    }

    pub(crate) fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_devfleet"));
        command.args(line).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.dir.path()).env("DEVFLEET_CONTEXT", &self.context);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs a command to its end, half a minute at most.
    pub(crate) async fn run(&self, line: &[&str]) -> Ran {
        Ran::of(self.command(line)).await
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.running.take() {
            runtime.shutdown_background();
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) bytes: Vec<u8>,
}

impl Ran {
    pub(crate) async fn of(mut command: Command) -> Ran {
        let output: Output = tokio::time::timeout(Duration::from_secs(30), command.output())
            .await
            .expect("it ends in time")
            .expect("it starts");
        Ran {
            code: output.status.code().expect("an exit code"),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            bytes: output.stdout,
        }
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Makes an authority, and an identity for 127.0.0.1 that it certified.
pub(crate) fn certificates() -> (String, Identity) {
    let mut params = CertificateParams::new(Vec::new()).expect("valid");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
    let key = KeyPair::generate().expect("a key");
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("valid");
    let certificate = server.signed_by(&key, &authority).expect("a certificate");
    (authority.as_ref().pem(), Identity::from_pem(certificate.pem(), key.serialize_pem()))
}

/// Waits until something is so, for at most twenty seconds.
pub(crate) async fn until<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    looking::until(Duration::from_secs(20), what, async || look()).await
}
