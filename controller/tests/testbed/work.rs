//! The stage of the scenes: a fleet, people, a forge with one small project, and everything that is recorded.

use std::process::Command;
use std::sync::Mutex;

use devfleet_proto::v1;

use crate::fleet::{Fleet, HOSTS, now, run, wait_for};
use crate::history::{AttemptLog, History, JobEnd, Opened, Running};
use crate::invariants;
use crate::people::{People, phase};
use crate::scanner::Scanner;
use crate::support::gitlab::{GitLabStandIn, ProjectHandle, Scope};
use crate::watcher::Watcher;

const IMAGE: &str = "devfleet-test/python:3.11";
/// Passes when the agent did the task, once.
const CHECK: &str = "set -e\ngrep -q 42 answer.txt\n[ \"$(cat runs.txt)\" = run ]\necho the answer is right\n";
const SERVICE: &str = "services:\n  - name: devfleet-test/redis:7\n    alias: cache\n";

/// Makes processes as fast as it can.
const FORK_BOMB: &str = "bomb() { bomb | bomb & }\nbomb\nsleep 3\nexit 1\n";
/// Ignores what asks it to end, and has a child in a session of its own that does so too.
const STUBBORN: &str = "trap '' TERM INT HUP\n(setsid sh -c \"trap '' TERM INT HUP; sleep 1000\" &)\necho 'total 1'\necho 'line 1'\n\
    while true; do sleep 1; done\n";

/// Everything a scene plays with.
pub(crate) struct Stage {
    pub(crate) fleet: Fleet,
    pub(crate) people: People,
    pub(crate) gitlab: GitLabStandIn,
    /// The project, in the forge.
    pub(crate) project: ProjectHandle,
    scanner: Scanner,
    watcher: Watcher,
    canary: String,
    accepted: Mutex<Vec<String>>,
}

impl Stage {
    /// Brings everything up.
    pub(crate) async fn up() -> Stage {
        devfleet_shared::tls::install_provider();
        let fleet = Fleet::up();
        let people = People::of(&fleet);
        let gitlab = GitLabStandIn::start_at(fleet.address("machine").parse().expect("an address")).await;
        let ci = format!("image: {IMAGE}\n{SERVICE}test:\n  script: [sh check.sh]\n");
        let files = [(".gitlab-ci.yml", ci.as_str()), ("check.sh", CHECK), ("answer.txt", "41\n")];
        let project = gitlab.create_project("team/app", &files);
        let canary = format!("canary-{}", uuid::Uuid::new_v4());
        let scanner = Scanner::start(fleet.dir());
        let watcher = Watcher::start(&fleet);
        let stage = Stage { fleet, people, gitlab, project, scanner, watcher, canary, accepted: Mutex::default() };
        stage.apply().await;
        stage.people.all_hosts_ready().await;
        stage
    }

    async fn apply(&self) {
        let work = self.fleet.dir().join("work");
        let write = |name: &str, text: &str| {
            std::fs::write(work.join(name), text).expect("written");
            format!("file://{}", work.join(name).display())
        };
        let (token, key) = (write("forge-token", &self.gitlab.token(Scope::Api)), write("agent-key", &self.canary));
        let mut toml = format!(
            "name = \"app\"\napproval = \"auto\"\nagent = \"steady-5\"\nmax_attempts = 3\n[forge]\nkind = \"gitlab\"\nurl = {:?}\n\
             project = \"team/app\"\ntoken = {token:?}\n[limits]\nmemory = \"128MiB\"\ndisk = \"64MiB\"\n",
            self.gitlab.url()
        );
        for seconds in [1, 5, 15, 30, 60, 120, 400] {
            let script = steady(seconds * 10, "sleep 0.1");
            toml += &format!(
                "[agents.steady-{seconds}]\nkind = \"script\"\ncommand = {script:?}\nsecrets.AGENT_KEY = {key:?}\n"
            );
        }
        let flood = steady(200_000, ":");
        toml += &format!("[agents.flood]\nkind = \"script\"\ncommand = {flood:?}\n");
        for (name, script) in [("fork-bomb", FORK_BOMB), ("stubborn", STUBBORN)] {
            toml += &format!("[agents.{name}]\nkind = \"script\"\ncommand = {script:?}\n");
        }
        self.people.apply(&toml).await;
    }

    /// Submits a job; its agent `steady-N` writes ten numbered lines a second for N seconds.
    pub(crate) async fn submit(&self, agent: &str) -> String {
        let id = self.people.submit("app", agent).await;
        self.accepted.lock().expect("the list").push(id.clone());
        id
    }

    /// Submits a job and waits until its agent works; returns the job and the node where.
    pub(crate) async fn at_work(&self, agent: &str) -> (v1::Job, String) {
        let id = self.submit(agent).await;
        let job = self.working(&id).await;
        let node = self.people.node_of(&job.attempts.last().expect("an attempt").host).await;
        (job, node)
    }

    /// Waits until a job's agent has written its first line: then it surely has what it needs, and runs by itself.
    pub(crate) async fn working(&self, id: &str) -> v1::Job {
        let job = self.people.until(id, "the agent at work", |job| phase(job) == "agent").await;
        let attempt = &job.attempts.last().expect("an attempt").id;
        self.kernel(id, "the agent's process", |running| running.iter().any(|one| one.name.contains("-agent"))).await;
        wait_for("the agent's first line", async || {
            let log = parse_log(String::new(), false, &self.people.records(id, attempt).await);
            (!log.lines.is_empty()).then_some(())
        })
        .await;
        job
    }

    /// Lets these hosts alone get new jobs.
    pub(crate) async fn only(&self, nodes: &[&str]) {
        for host in self.people.hosts().await {
            let (host, reason, open) = (host.id, "the scene".to_owned(), nodes.contains(&host.name.as_str()));
            let resume = v1::ResumeHostRequest { host: host.clone(), reason: reason.clone() };
            let cordon = v1::CordonHostRequest { host, reason };
            let told = self.people.call(async |to| match open {
                true => to.fleet().resume_host(resume.clone()).await,
                false => to.fleet().cordon_host(cordon.clone()).await,
            });
            told.await.expect("the host is told");
        }
    }

    /// Ends everything on a host at once, as a power failure does: daemons, engine, and all that runs in containers.
    pub(crate) fn power_off(&self, node: &str) {
        let names = ["devfleet-host", "devfleet-watchd", "dockerd", "containerd", "containerd-shim"];
        for part in ["host", "dockerd"] {
            self.fleet.kill(&format!("{node}.{part}"));
        }
        self.fleet.kill_below(node, &names);
        for running in self.scanner.latest().iter().filter(|running| running.node == node) {
            self.fleet.kill_process(running.pid);
        }
    }

    /// Returns the controllers' parts.
    pub(crate) fn controllers(&self) -> Vec<String> {
        self.people.nodes().iter().map(|node| format!("{node}.controller")).collect()
    }

    /// Returns the part of the controller that leads, as the store says.
    pub(crate) async fn leader(&self) -> String {
        wait_for("a leader", async || {
            let changes = self.watcher.changes();
            let mut leads = changes.iter().rev().filter(|change| change.key == "/devfleet/v1/leader");
            let id = leads.next()?.value.as_ref()?["controller"].as_str()?.to_owned();
            let known = |node: &&&str| {
                let file = self.fleet.dir().join(node).join("controller/controller-id");
                std::fs::read_to_string(file).is_ok_and(|text| text.trim() == id)
            };
            Some(format!("{}.controller", self.people.nodes().iter().find(known)?))
        })
        .await
    }

    /// Returns the containers of a job that have processes now, as the kernel has them.
    pub(crate) fn running(&self, job: &str) -> Vec<Running> {
        self.scanner.latest().into_iter().filter(|running| running.job == job).collect()
    }

    /// Waits until the kernel shows a job's containers as wanted.
    pub(crate) async fn kernel(&self, job: &str, what: &str, wanted: impl Fn(&[Running]) -> bool) -> Vec<Running> {
        wait_for(what, async || Some(self.running(job)).filter(|running| wanted(running))).await
    }

    /// Waits until all is over, and checks every invariant; returns how the jobs ended.
    pub(crate) async fn settle(&self) -> Vec<v1::Job> {
        let accepted = std::mem::take(&mut *self.accepted.lock().expect("the list"));
        let mut jobs = Vec::new();
        let mut history = History { accepted: accepted.clone(), ..History::default() };
        for id in &accepted {
            let job = self.people.ended(id).await;
            history.jobs.push(end_of(&job));
            for attempt in &job.attempts {
                history.logs.push(self.log_of(&job, attempt).await);
            }
            jobs.push(job);
        }
        self.people.all_hosts_ready().await;
        let opened = self.gitlab.merge_requests(&self.project).into_iter().map(|opened| Opened {
            head: self.gitlab.head(&self.project, &opened.source_branch).unwrap_or_default(),
            source_branch: opened.source_branch,
        });
        history.merge_requests = opened.collect();
        history.left = self.leftovers().await;
        history.scans = self.scanner.take();
        history.changes = self.watcher.changes();
        assert!(!history.changes.is_empty(), "the store's history is watched");
        let complaints = invariants::check(&history);
        assert!(complaints.is_empty(), "{}\n{jobs:#?}", complaints.join("\n"));
        jobs
    }

    async fn log_of(&self, job: &v1::Job, attempt: &v1::Attempt) -> AttemptLog {
        let whole = job.outcome == "succeeded" && job.attempts.last().is_some_and(|last| last.id == attempt.id);
        let mut records = self.people.records(&job.id, &attempt.id).await;
        if whole {
            let end = v1::log_record::Channel::End as i32;
            records = wait_for("the end of a log", async || {
                let records = self.people.records(&job.id, &attempt.id).await;
                records.iter().any(|record| record.channel == end).then_some(records)
            })
            .await;
        }
        parse_log(attempt.id.clone(), whole, &records)
    }

    /// Returns what stays of environments, after as long as clean-up may take.
    async fn leftovers(&self) -> Vec<String> {
        let deadline = now() + std::time::Duration::from_secs(60);
        let look = async || {
            let left: Vec<_> = HOSTS.iter().flat_map(|host| self.left_on(host)).collect();
            (left.is_empty() || now() > deadline).then_some(left)
        };
        wait_for("the end of clean-up", look).await
    }

    fn left_on(&self, host: &str) -> Vec<String> {
        let ours = "label=devfleet.attempt";
        let lists: [&[&str]; 3] = [
            &["ps", "--all", "--format", "container {{.Names}}", "--filter", ours],
            &["network", "ls", "--format", "network {{.Name}}", "--filter", ours],
            &["volume", "ls", "--format", "volume {{.Name}}", "--filter", ours],
        ];
        let mut left: Vec<String> = Vec::new();
        for list in lists {
            left.extend(self.fleet.docker(host, list).lines().map(|line| format!("{host}: {line}")));
        }
        // What the engine no longer knows: links, mounts and processes.
        for line in self.fleet.in_node(host, &["ip", "-o", "link"]).lines() {
            let name = line.split(": ").nth(1).unwrap_or_default().split('@').next().unwrap_or_default();
            if !["lo", "eth0", "docker0"].contains(&name) {
                left.push(format!("{host}: link {name}"));
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = format!("{}/{host}/", self.fleet.dir().display());
        let stays =
            |place: &str| place.starts_with(&below) && (place.ends_with("/merged") || place.contains("/netns/"));
        left.extend(
            mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|place| stays(place)).map(str::to_owned),
        );
        left.extend(
            self.scanner
                .latest()
                .iter()
                .filter(|running| running.node == host)
                .map(|running| format!("{host}: process {} of {}", running.pid, running.name)),
        );
        left
    }

    /// Returns the files of the testbed in which a secret stands, where none may stand.
    pub(crate) fn secrets_at_rest(&self) -> Vec<String> {
        let mut command = Command::new("grep");
        command.args(["-r", "-l", "-a", "-F", "--devices=skip", "--exclude-dir=work", "-e", &self.canary]);
        let output = command.arg(self.fleet.dir()).output().expect("grep can be run");
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    /// Reads a file on a branch of the project.
    pub(crate) fn file(&self, branch: &str, path: &str) -> String {
        run(Command::new("git").arg("-C").arg(&self.project.git_dir).args(["show", &format!("{branch}:{path}")]))
    }
}

/// An agent that writes numbered lines, notes that it ran, and does the task.
fn steady(lines: u64, pause: &str) -> String {
    format!(
        "echo run >> runs.txt\necho \"total {lines}\"\ni=0\nwhile [ $i -lt {lines} ]; do i=$((i+1)); echo \"line $i\"; {pause}; \
         done\necho 42 > answer.txt\n"
    )
}

fn end_of(job: &v1::Job) -> JobEnd {
    JobEnd {
        id: job.id.clone(),
        phase: job.phase.clone(),
        outcome: job.outcome.clone(),
        reason: job.failure.as_ref().map(|failure| failure.reason.clone()).unwrap_or_default(),
        branches: job.attempts.iter().map(|attempt| attempt.branch.clone()).collect(),
        commit: job.merge_request.as_ref().map(|opened| opened.commit.clone()).unwrap_or_default(),
    }
}

fn parse_log(attempt: String, whole: bool, records: &[v1::LogRecord]) -> AttemptLog {
    let mut log = AttemptLog { attempt, whole, ..AttemptLog::default() };
    let mut text = Vec::new();
    let mut take = |text: &mut Vec<u8>, lines: &mut Vec<Option<u64>>| {
        // The last line may go on in the next record.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |place| place + 1);
        for line in String::from_utf8_lossy(&text.drain(..whole).collect::<Vec<_>>()).lines() {
            let number = |word: &str| line.strip_prefix(word).and_then(|number| number.trim().parse().ok());
            if let Some(total) = number("total ") {
                log.written = total;
            }
            lines.extend(number("line ").map(Some));
        }
    };
    let mut lines = Vec::new();
    for record in records.iter().filter(|record| record.source == "agent") {
        if record.channel == v1::log_record::Channel::Cut as i32 {
            take(&mut text, &mut lines);
            text.clear();
            lines.push(None);
        } else {
            text.extend_from_slice(&record.data);
            take(&mut text, &mut lines);
        }
    }
    log.lines = lines;
    log
}
