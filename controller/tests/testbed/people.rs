//! The people of the testbed: an operator who asks whichever controller answers, as the CLI does.

use devfleet_controller::cli::connection::Connection;
use devfleet_controller::cli::context::Context;
use devfleet_proto::v1;
use devfleet_shared::secret::Secret;
use tonic::{Code, Response, Status};

use crate::fleet::{Fleet, PATIENCE, now, wait_for};

/// An operator with a way to each controller.
pub(crate) struct People {
    nodes: Vec<&'static str>,
    connections: Vec<Connection>,
}

impl People {
    /// Prepares the ways.
    pub(crate) fn of(fleet: &Fleet) -> Self {
        let read = |name: &str| std::fs::read_to_string(fleet.dir().join(name)).expect(name);
        let connect = |node: &str| {
            let controller = format!("https://{}:7443", fleet.address(node));
            let token = Secret::new(read("token").trim());
            Connection::new(&Context { controllers: vec![controller], authority: read("authority.pem"), token })
                .expect("a connection")
        };
        let made = |node: &&str| fleet.dir().join("run").join(format!("{node}.controller.sh")).exists();
        let nodes: Vec<_> = ["c1", "c2"].into_iter().filter(made).collect();
        Self { connections: nodes.iter().copied().map(connect).collect(), nodes }
    }

    /// Returns the controllers' nodes.
    pub(crate) fn nodes(&self) -> &[&'static str] {
        &self.nodes
    }

    /// Waits until every controller answers.
    pub(crate) async fn answering(&self) {
        for connection in &self.connections {
            wait_for("a controller", async || connection.fleet().who_am_i(v1::WhoAmIRequest {}).await.ok()).await;
        }
    }

    /// Makes a call that is safe to repeat, until some controller answers it.
    pub(crate) async fn call<T>(
        &self,
        call: impl AsyncFn(&Connection) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let deadline = now() + PATIENCE;
        let mut turn = 0;
        let mut asks = tokio::time::interval(std::time::Duration::from_millis(100));
        loop {
            match call(&self.connections[turn % self.connections.len()]).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if passes(&status) && now() < deadline => turn += 1,
                Err(status) => return Err(status),
            }
            asks.tick().await;
        }
    }

    /// Applies a project.
    pub(crate) async fn apply(&self, toml: &str) {
        let request = v1::ApplyProjectRequest { toml: toml.to_owned() };
        self.call(async |to| to.jobs().apply_project(request.clone()).await).await.expect("the project is right");
    }

    /// Submits a job; returns its id once it is accepted.
    pub(crate) async fn submit(&self, project: &str, agent: &str) -> String {
        self.try_submit(project, agent).await.expect("the job is accepted")
    }

    /// Makes a call once, with the first controller that is there.
    pub(crate) async fn once<T>(
        &self,
        call: impl AsyncFn(&Connection) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        call(&self.connections[0]).await.map(Response::into_inner)
    }

    async fn try_submit(&self, project: &str, agent: &str) -> Result<String, Status> {
        let request = submission(project, agent);
        let answer = self.call(async |to| to.jobs().submit(request.clone()).await).await?;
        Ok(answer.job.expect("a job").id)
    }

    /// Reads a job.
    pub(crate) async fn job(&self, id: &str) -> v1::Job {
        self.call(async |to| to.jobs().get_job(v1::GetJobRequest { job: id.to_owned() }).await).await.expect("the job")
    }

    /// Waits until a job is as wanted.
    pub(crate) async fn until(&self, id: &str, what: &str, wanted: impl Fn(&v1::Job) -> bool) -> v1::Job {
        let wait = wait_for(what, async || {
            let job = self.job(id).await;
            assert!(job.phase != "ended" || wanted(&job), "waited for {what}, but the job ended: {job:#?}");
            wanted(&job).then_some(job)
        });
        wait.await
    }

    /// Waits until a job and all its attempts have ended.
    pub(crate) async fn ended(&self, id: &str) -> v1::Job {
        wait_for(&format!("the end of job {id}"), async || {
            let job = self.job(id).await;
            let over = job.phase == "ended" && job.attempts.iter().all(|attempt| attempt.ended_unix_ms > 0);
            over.then_some(job)
        })
        .await
    }

    /// Returns the log of a job: all its records, those of every attempt.
    pub(crate) async fn records(&self, id: &str, attempt: &str) -> Vec<v1::LogRecord> {
        let request = v1::ReadLogsRequest { job: id.to_owned(), follow: false, attempt: attempt.to_owned() };
        let read = async || {
            for connection in &self.connections {
                let Ok(stream) = connection.streams().read_logs(request.clone()).await else { continue };
                let (mut stream, mut records) = (stream.into_inner(), Vec::new());
                loop {
                    match stream.message().await {
                        Ok(Some(record)) => records.push(record),
                        Ok(None) => return Some(records),
                        Err(_) => break,
                    }
                }
            }
            None
        };
        wait_for("a job's log", read).await
    }

    /// Lists the hosts.
    pub(crate) async fn hosts(&self) -> Vec<v1::Host> {
        self.call(async |to| to.fleet().list_hosts(v1::ListHostsRequest {}).await).await.expect("the hosts").hosts
    }

    /// Waits until all hosts are connected and without problems.
    pub(crate) async fn all_hosts_ready(&self) {
        wait_for("three ready hosts", async || {
            let hosts = self.hosts().await;
            let ready = |host: &v1::Host| {
                host.connected && host.inventory.as_ref().is_some_and(|inventory| inventory.problems.is_empty())
            };
            (hosts.len() == 3 && hosts.iter().all(ready)).then_some(())
        })
        .await;
    }

    /// Returns the node of a host by its id.
    pub(crate) async fn node_of(&self, host: &str) -> String {
        self.hosts().await.into_iter().find(|known| known.id == host).expect("a known host").name
    }
}

/// Asks for a job.
pub(crate) fn submission(project: &str, agent: &str) -> v1::SubmitRequest {
    v1::SubmitRequest {
        project: project.to_owned(),
        agent: agent.to_owned(),
        task: "Make the answer right.".to_owned(),
        idempotency_key: uuid::Uuid::new_v4().to_string(),
        ..Default::default()
    }
}

/// Says whether the same call may succeed elsewhere or later.
fn passes(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Aborted
    )
}

/// Returns the phase of a job's newest attempt, by its name.
pub(crate) fn phase(job: &v1::Job) -> String {
    let state = job.attempts.last().and_then(|attempt| attempt.state.clone());
    let phase = state.and_then(|state| devfleet_shared::attempt::Phase::try_from(state).ok());
    phase.map(|phase| phase.name().to_owned()).unwrap_or_default()
}
