//! Environments as the host daemon makes them: its saga, with a real ledger on a real disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

use anyhow::Context as _;
use devfleet_host::engine::{ImageFacts, SharedEngine};
use devfleet_host::environment::{Devbox, ImageRequest, Images, Pulls, StepCommand, SubnetPool, Wanted, frame};
use devfleet_host::ledger::Ledger;
use devfleet_shared::assignment::{AgentKind, AgentSpec, Assignment, Limits, Repository};
use devfleet_shared::attempt::Step;
use devfleet_shared::clock::Clock;
use devfleet_shared::environment::{EnvironmentSpec, Recipe, ServiceSpec};
use devfleet_shared::id::{AttemptId, Fence, HostId, JobId};
use futures_util::StreamExt as _;

use crate::Spans;

/// The CI image.
const BASE: &str = "devfleet-test/python:3.11";
/// The service.
pub(crate) const SERVICE: &str = "devfleet-test/redis:7";
/// The service's name.
pub(crate) const SERVICE_NAME: &str = "redis";
/// The step that is the first.
pub(crate) const STEP: Step = Step::Setup;
/// What it runs. It is still there when everything is taken down, as docker-compose's box is.
const SCRIPT: &str = "echo ready; exec sleep infinity";
/// What it prints.
pub(crate) const FIRST_LINE: &str = "ready";
/// Addresses for our networks.
const POOL: &str = "10.231.0.0/17";

pub(crate) struct Saga {
    engine: SharedEngine,
    host: HostId,
    pool: SubnetPool,
    images: Images,
    recipe: Recipe,
    ledgers: tempfile::TempDir,
    clock: Clock,
}

/// One environment to come.
struct Plan {
    assignment: Assignment,
    ledger: Ledger,
}

impl Saga {
    pub(crate) fn new(engine: &SharedEngine, host: &HostId) -> anyhow::Result<Saga> {
        let dockerfile =
            format!("FROM {BASE}\nARG DEVFLEET_USER=0\nUSER 0\nRUN mkdir -p /workspace\nWORKDIR /workspace\n");
        Ok(Saga {
            engine: Arc::clone(engine),
            host: host.clone(),
            pool: POOL.parse()?,
            images: Images::new(Arc::clone(engine), host.clone()),
            recipe: Recipe::new(dockerfile, Vec::new(), String::new()),
            ledgers: tempfile::tempdir()?,
            clock: Clock::system(),
        })
    }

    /// Builds the image of the environments.
    pub(crate) async fn image(&self) -> anyhow::Result<ImageFacts> {
        let request = ImageRequest {
            recipe: &self.recipe,
            base: Wanted { reference: BASE, platform: "", pull: None },
            pulls: &Pulls::default(),
            created: self.clock.now(),
            note: &|_| {},
        };
        self.images.ensure(&request).await.context("this needs the test images; run: deploy/images/build.sh")
    }

    /// Makes an environment and removes it again.
    pub(crate) async fn once(&self) -> anyhow::Result<Spans> {
        let plan = self.plan(AttemptId::random())?;
        let begin = Instant::now();
        self.bring_up(&plan).await?;
        let up = begin.elapsed();
        let begin = Instant::now();
        self.devbox(&plan).tear_down().await?;
        Ok(Spans { up, down: begin.elapsed() })
    }

    /// Makes an environment, shows it, and removes it again.
    pub(crate) async fn showing<T>(
        &self,
        attempt: AttemptId,
        show: impl AsyncFnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let plan = self.plan(attempt)?;
        self.bring_up(&plan).await?;
        let shown = show().await?;
        self.devbox(&plan).tear_down().await?;
        Ok(shown)
    }

    async fn bring_up(&self, plan: &Plan) -> anyhow::Result<()> {
        let devbox = self.devbox(plan);
        let image = devbox.prepare(&Pulls::default()).await?;
        let command = StepCommand { script: SCRIPT.into(), network: true, keep_output: true, ..StepCommand::default() };
        let name = devbox.make_step(&image, STEP, 1, command).await?;
        self.engine.start(&name, Some(&frame(&BTreeMap::new())?), false).await?;
        let mut output = self.engine.output(&name, None).await?;
        let first = output.next().await.context("the step ended without a line")??;
        anyhow::ensure!(first.data.starts_with(FIRST_LINE.as_bytes()), "the step printed {first:?}");
        Ok(())
    }

    fn plan(&self, attempt: AttemptId) -> anyhow::Result<Plan> {
        let assignment = self.assignment(attempt)?;
        let ledger = Ledger::create(self.ledgers.path(), self.clock.clone(), &assignment)?;
        Ok(Plan { assignment, ledger })
    }

    fn devbox<'a>(&'a self, plan: &'a Plan) -> Devbox<'a> {
        let created = self.clock.now();
        Devbox {
            engine: &self.engine,
            host: &self.host,
            assignment: &plan.assignment,
            created,
            expires: created.after(Duration::from_secs(3600)),
            ledger: &plan.ledger,
            note: &|_| {},
            pool: &self.pool,
            images: &self.images,
        }
    }

    fn assignment(&self, attempt: AttemptId) -> anyhow::Result<Assignment> {
        let service = ServiceSpec {
            name: SERVICE_NAME.into(),
            image: SERVICE.into(),
            aliases: vec![SERVICE_NAME.into()],
            ..ServiceSpec::default()
        };
        Ok(Assignment {
            job: JobId::random(),
            attempt,
            fence: Fence(1),
            project: "bench".parse()?,
            task: String::new(),
            plan: String::new(),
            environment: EnvironmentSpec { image: BASE.into(), services: vec![service], ..EnvironmentSpec::default() },
            recipe: self.recipe.clone(),
            repository: Repository {
                url: String::new(),
                base_commit: String::new(),
                base_branch: String::new(),
                work_branch: String::new(),
            },
            agent: AgentSpec {
                name: "script".parse()?,
                kind: AgentKind::Script,
                command: String::new(),
                variables: BTreeMap::new(),
                secrets: Vec::new(),
            },
            limits: Limits::default(),
            hold: Duration::ZERO,
        })
    }
}
