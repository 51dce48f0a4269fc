//! A real etcd cluster for one test: members on loopback ports, data in a directory that goes with it.
//!
//! It is the machine's etcd, or the program named by `DEVFLEET_TEST_ETCD` (deploy/testbed/fetch.sh brings a newer one).
//! Members are processes of this test alone; they are killed by their own handles, and all of them when it is dropped.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::certificates::Certificates;
use crate::support::looking;
use devfleet_controller::store::SharedStore;
use devfleet_controller::store::etcd::{Etcd, EtcdSettings};
use devfleet_shared::secret::Secret;
use tempfile::TempDir;

/// How long a cluster may take to begin to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The members.
pub(crate) struct Cluster {
    dir: TempDir,
    program: PathBuf,
    members: Vec<Member>,
    tls: Option<Certificates>,
    /// How large the data of a member may become, in bytes; 0: etcd's default.
    quota: u64,
}

struct Member {
    client: u16,
    peer: u16,
    process: Option<Child>,
}

impl Cluster {
    /// Starts members.
    pub(crate) fn start(count: usize) -> Cluster {
        Cluster::launch(count, None)
    }

    /// Starts one member that takes only clients with a certificate of its authority.
    pub(crate) fn with_tls() -> Cluster {
        Cluster::launch(1, Some(Certificates::make()))
    }

    fn launch(count: usize, tls: Option<Certificates>) -> Cluster {
        devfleet_shared::tls::install_provider();
        let dir = tempfile::Builder::new().prefix("devfleet-etcd-").tempdir().expect("a directory");
        if let Some(tls) = &tls {
            for (name, text) in [("ca.pem", &tls.ca), ("cert.pem", &tls.certificate), ("key.pem", &tls.key)] {
                std::fs::write(dir.path().join(name), text).expect("written");
            }
        }
        let program = std::env::var_os("DEVFLEET_TEST_ETCD").map_or_else(|| PathBuf::from("etcd"), PathBuf::from);
        let held: Vec<TcpListener> =
            (0..count * 2).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let ports: Vec<u16> = held.iter().map(|port| port.local_addr().expect("bound").port()).collect();
        let member = |pair: &[u16]| Member { client: pair[0], peer: pair[1], process: None };
        let members = ports.chunks(2).map(member).collect();
        drop(held);
        let mut cluster = Cluster { dir, program, members, tls, quota: 0 };
        for number in 0..count {
            cluster.revive(number);
        }
        cluster
    }

    /// Limits the data of every member from its next start on.
    pub(crate) fn limit(&mut self, bytes: u64) {
        self.quota = bytes;
    }

    /// Kills a member, as a power cut would.
    pub(crate) fn kill(&mut self, number: usize) {
        if let Some(mut process) = self.members[number].process.take() {
            process.kill().expect("it is ours");
            process.wait().expect("it ended");
        }
    }

    /// Starts a member that was killed.
    pub(crate) fn revive(&mut self, number: usize) {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let peers: Vec<String> = (0..self.members.len())
            .map(|each| format!("m{each}=http://127.0.0.1:{}", self.members[each].peer))
            .collect();
        let (dir, member) = (self.dir.path().to_owned(), &mut self.members[number]);
        let client = format!("{scheme}://127.0.0.1:{}", member.client);
        let peer = format!("http://127.0.0.1:{}", member.peer);
        let log = std::fs::File::create(dir.join(format!("m{number}.log"))).expect("a file");
        let mut command = Command::new(&self.program);
        command
            .args(["--name", &format!("m{number}"), "--logger", "zap", "--log-level", "error"])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(["--quota-backend-bytes", &self.quota.to_string()])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &peers.join(","), "--initial-cluster-state", "new"])
            .arg("--data-dir")
            .arg(dir.join(format!("m{number}")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if self.tls.is_some() {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(dir.join("ca.pem"));
            command.arg("--cert-file").arg(dir.join("cert.pem")).arg("--key-file").arg(dir.join("key.pem"));
        }
        let missing = "etcd runs (apt-get install etcd-server, as deploy/setup.sh does)";
        member.process = Some(command.spawn().expect(missing));
    }

    /// Returns how the members are reached, the given one first.
    pub(crate) fn settings(&self, first: usize) -> EtcdSettings {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let count = self.members.len();
        let order = (0..count).map(|n| (first + n) % count);
        EtcdSettings {
            endpoints: order.map(|n| format!("{scheme}://127.0.0.1:{}", self.members[n].client)).collect(),
            prefix: "/devfleet-test".into(),
            ca: self.tls.as_ref().map(|tls| tls.ca.clone()),
            identity: self.tls.as_ref().map(|tls| (tls.certificate.clone(), Secret::new(tls.key.clone()))),
            user: None,
        }
    }

    /// Returns where a member takes clients.
    pub(crate) fn address(&self, number: usize) -> String {
        format!("127.0.0.1:{}", self.members[number].client)
    }

    /// Connects a writer of this name, once the cluster answers.
    pub(crate) async fn store(&self, first: usize, writer: &str) -> SharedStore {
        connect(self.settings(first), writer).await
    }
}

/// Connects once the cluster answers.
pub(crate) async fn connect(settings: EtcdSettings, writer: &str) -> SharedStore {
    let connected = async || Etcd::connect(settings.clone(), writer).await.ok();
    looking::until(PATIENCE, "etcd's answer", connected).await
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for number in 0..self.members.len() {
            self.kill(number);
        }
    }
}
